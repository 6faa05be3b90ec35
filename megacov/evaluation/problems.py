"""The problems of a suite, from files of the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megacov.config.messages import join_names
from megacov.config.suite import EvaluationSet, SuiteSection
from megacov.data import load_prompts
from megacov.data.prompt_table import PromptTable
from megacov.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATA_VARIABLE = "MEGACOV_DATA"


@dataclass(frozen=True, slots=True)
class Found:
    """The sets that are evaluated, each with its file; and names of those whose files are missing."""

    sets: tuple[tuple[EvaluationSet, Path], ...]
    missing: tuple[str, ...]


def find_sets(
    suite: SuiteSection, only: Sequence[str], data: Path | None, *, allow_missing: bool, data_setting: str = "--data"
) -> Found:
    """Find the files of a suite's sets.

    Args:
        suite: the suite.
        only: names of the sets to take; empty takes all.
        data: folder in which relative paths are looked for before the working folder.
        allow_missing: whether sets without a file are left out; otherwise that is an error.
        data_setting: how a user names the data folder.

    Returns:
        The sets in the order of the suite.

    Raises:
        ConfigError: `only` names a set that the suite does not have.
        DataError: a set has no file, or none has one.
    """
    names = [each.name for each in suite.sets]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ConfigError(f"--only is {unknown[0]}, and the suite {suite.name} has {join_names(names)}.")
    wanted = [each for each in suite.sets if not only or each.name in only]
    placed = [(each, _place(each.path, data)) for each in wanted]
    found = tuple((each, path) for each, path in placed if path is not None)
    missing = tuple(each.name for each, path in placed if path is None)
    if missing and (not allow_missing or not found):
        first = next(each for each, path in placed if path is None)
        folder = (
            f"{data}"
            if data is not None
            else f"a data folder, since neither {data_setting} nor {DATA_VARIABLE} names one,"
        )
        advice = "" if allow_missing or data_setting != "--data" else ", or leave such sets out with --allow-missing"
        raise DataError(
            f"the set {first.name} needs the file {first.path}, which is neither in {folder} nor in the working "
            f"folder{f' (nor are those of {join_names(missing[1:])})' if missing[1:] else ''}: docs/evaluation.md says "
            f"where it comes from; put it there{advice}."
        )
    return Found(found, missing)


def read_problems(
    settings: EvaluationSet,
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    keep_rows: bool,
) -> PromptTable:
    """Read and tokenize the problems of a set.

    Args:
        settings: settings of the set.
        path: its file.
        tokenizer: tokenizer of the model.
        vocab_size: rows of the model's embedding.
        keep_rows: whether each problem carries the whole row of its file.

    Returns:
        The problems in the order of the file.

    Raises:
        DataError: the file cannot be read, holds no problem, or a problem is unusable.
    """
    try:
        return load_prompts(
            path,
            tokenizer,
            vocab_size=vocab_size,
            prompt_field=settings.prompt_field,
            answer_field=settings.answer_field,
            answer_format=settings.answer_format,
            system_prompt=settings.system_prompt,
            instruction=settings.instruction,
            chat_template=settings.chat_template,
            chat_template_kwargs=settings.chat_template_kwargs,
            max_prompt_length=settings.max_prompt_length,
            too_long="refuse",
            keep_rows=keep_rows,
        )
    except DataError as error:
        raise DataError(f"the set {settings.name}: {error}") from error


def _place(path: Path, data: Path | None) -> Path | None:
    folders = [] if data is None else [data]
    return next((place for folder in (*folders, Path()) if (place := folder / path).exists()), None)

"""The prompts of a run, from its configuration: their files, and what is read of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megacov.config import RunConfig
from megacov.config.data import DataSource
from megacov.data import JoinedPrompts, PromptTable, load_prompts
from megacov.data.columns import Columns
from megacov.data.files import find_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A file of prompts and the sha256 of its content."""

    name: str
    sha256: str


def load_sources(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, keep_rows: bool = False
) -> JoinedPrompts:
    """Read the prompts of all sources of a run, in the order of its configuration.

    Args:
        config: the run's configuration.
        tokenizer: tokenizer of the model.
        vocab_size: rows of the model's embedding.
        keep_rows: whether prompts carry their whole rows.

    Returns:
        The prompts, numbered from 0 over all sources; its tables are the sources.

    Raises:
        DataError: as `load_prompts`.
    """
    data, tables, first = config.data, list[PromptTable](), 0
    for place, source in enumerate(config.sources):
        columns = columns_of(source)
        table = load_prompts(
            source.path,
            tokenizer,
            vocab_size=vocab_size,
            prompt_field=columns.prompt_field,
            answer_field=columns.answer_field,
            answer_format=columns.answer_format,
            system_prompt=columns.system_prompt,
            instruction=columns.instruction,
            chat_template=data.chat_template,
            chat_template_kwargs=data.chat_template_kwargs,
            max_prompt_length=data.max_prompt_length,
            too_long=data.too_long,
            keep_rows=keep_rows,
            source=place,
            first_index=first,
        )
        first += len(table)
        tables.append(table)
    return JoinedPrompts(tables)


def columns_of(source: DataSource) -> Columns:
    """The fields of a source whose settings are all filled in."""
    assert source.prompt_field is not None and source.answer_field is not None and source.answer_format is not None
    return Columns(
        source.prompt_field, source.answer_field, source.answer_format, source.system_prompt, source.instruction
    )


def paths_of(config: RunConfig) -> list[tuple[str, str]]:
    """All paths and addresses of prompts, each after the setting that names it."""
    if config.data.path is not None:
        return [("data.path", path) for path in config.data.path]
    return [(f"data.sources {source.name}", path) for source in config.data.sources for path in source.path]


def hash_files(config: RunConfig) -> list[PromptFile]:
    """Read all files of all sources for their digests; raises DataError if one cannot be read."""
    return list(_hashed(config))


def _hashed(config: RunConfig) -> Iterator[PromptFile]:
    for source in config.sources:
        for file in find_files(source.path):
            yield PromptFile(file.name, file.sha256)

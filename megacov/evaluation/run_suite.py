"""The suite of a training run: its problems and verifiers, and evaluations of the run's weights at some steps.

RUN/evaluations holds two files of each evaluation: `step_N.responses.jsonl` grows problem by problem, and `step_N.json`
is written at the end.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megacov import __version__
from megacov.config.reward_rules import find_code
from megacov.config.suite import EvaluationSet, SuiteSection
from megacov.data.prompt_table import PromptTable
from megacov.errors import ConfigError, DataError
from megacov.evaluation.problems import DATA_VARIABLE, Found, find_sets, read_problems
from megacov.evaluation.records import FORMAT, Answered, RecordFile
from megacov.evaluation.report import Report, scalars
from megacov.evaluation.sample import Generates, Sampling, problems_digest, sample_problems
from megacov.evaluation.set_scores import SetScores, score_set
from megacov.evaluation.suite import settings_digest
from megacov.evaluation.tensorboard import write_scalars
from megacov.evaluation.verdicts import Verifiers
from megacov.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = "evaluations"
_RESULTS, _RECORDS = "step_{}.json", "step_{}.responses.jsonl"
_EITHER = re.compile(r"step_([0-9]+)\.(json|responses\.jsonl)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSuiteSettings:
    """How a run's evaluations are sampled, and where they are written.

    run: run folder.
    model: name of the run, in the report.
    seed: of the run.
    sends_seeds: whether requests carry seeds.
    max_concurrency: largest number of problems that are sampled at a time.
    stop_token_ids: token ids that end a response, in addition to the model's own.
    servers: what of the servers decides the results.
    """

    run: Path
    model: str
    seed: int
    sends_seeds: bool
    max_concurrency: int
    stop_token_ids: tuple[int, ...]
    servers: Mapping[str, object]


class RunSuite:
    """The problems of a suite, in memory, and its verifiers, which belong to the caller."""

    def __init__(self, suite: SuiteSection, found: Found, verifiers: Verifiers, settings: RunSuiteSettings) -> None:
        """Read nothing yet.

        Args:
            suite: the suite.
            found: its sets with their files.
            verifiers: started verifiers of these sets.
            settings: how evaluations are sampled, and where they are written.
        """
        self._suite, self._found, self._verifiers, self._settings = suite, found, verifiers, settings
        self._tables: dict[str, PromptTable] = {}
        self._problems_digests: dict[str, str] = {}
        self._unreadable: dict[str, int] = {}

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return self._settings.run / FOLDER

    async def read(self, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> None:
        """Read all problems, and look whether the verifiers can judge against their answers.

        Args:
            tokenizer: tokenizer of the model.
            vocab_size: rows of the model's embedding.

        Raises:
            DataError: a file, a problem or an answer is unusable.
            RewardError: the verifiers' processes cannot be started again.
        """
        for settings, path in self._found.sets:
            keep_rows = self._verifiers.wants_row(settings)
            table = read_problems(settings, path, tokenizer, vocab_size=vocab_size, keep_rows=keep_rows)
            num_unreadable = await self._verifiers.check_answers(settings, table, table.place_of)
            self._unreadable[settings.name] = num_unreadable
            self._tables[settings.name] = table
            self._problems_digests[settings.name] = problems_digest(table[:])

    def is_done(self, step: int) -> bool:
        """Whether the results of a step are there."""
        return (self.folder / _RESULTS.format(step)).is_file()

    def begin_after(self, step: int) -> int | None:
        """Remove what an earlier course of the run has written of later steps, whose weights are gone.

        Args:
            step: step after which the run goes on.

        Returns:
            The newest earlier step whose evaluation was begun and not finished, or None.

        Raises:
            DataError: a file cannot be removed.
        """
        begun: list[int] = []
        try:
            for path in self.folder.iterdir() if self.folder.is_dir() else ():
                named = _EITHER.fullmatch(path.name)
                if named and int(named[1]) > step:
                    path.unlink()
                elif named and not self.is_done(int(named[1])):
                    begun.append(int(named[1]))
        except OSError as error:
            raise DataError(f"{error.filename} cannot be removed ({error.strerror}): remove it.") from error
        return max(begun, default=None)

    async def evaluate(self, client: Generates, step: int) -> dict[str, float]:
        """Sample, judge and score what is left of the evaluation of a step, and write its results.

        Args:
            client: gives completions, of whatever weights the servers hold.
            step: step whose weights are evaluated.

        Returns:
            The scores, as scalars by tag.

        Raises:
            RolloutError: the servers gave no full set of responses.
            RewardError: the verifiers' processes cannot be started again.
            DataError: the folder of the results cannot be written.
        """
        identity = self._identity(step)
        with self._open(self.folder / _RECORDS.format(step), identity) as records:
            for settings, table in self._sets():
                finished = records.finished
                left = [each for each in table[:] if not _is_whole(finished.get((settings.name, each.index)), settings)]
                sampling = Sampling(
                    settings=settings,
                    seed=self._settings.seed if self._settings.sends_seeds else None,
                    max_concurrency=self._settings.max_concurrency,
                    notes_versions=True,
                    stop_token_ids=self._settings.stop_token_ids,
                )
                judge = self._verifiers.judge_of(settings)
                await sample_problems(client, judge, left, sampling, on_answered=records.add)
            # Scoring and TensorBoard's import take seconds, in which the loop must serve rollouts.
            return await asyncio.to_thread(self._write, step, records, identity)

    def _sets(self) -> list[tuple[EvaluationSet, PromptTable]]:
        return [(settings, self._tables[settings.name]) for settings, _ in self._found.sets]

    def _identity(self, step: int) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "megacov_version": __version__,
            "step": step,
            "suite_digest": settings_digest(self._suite),
            "seed": self._settings.seed,
            "stop_token_ids": list(self._settings.stop_token_ids),
            "servers": dict(self._settings.servers),
        }

    def _open(self, path: Path, identity: Mapping[str, Any]) -> RecordFile:
        """Open the file of an evaluation. One of another suite or seed, or a damaged one, begins anew."""
        identity = {**identity, "problems_digests": self._problems_digests}
        try:
            return RecordFile(path, identity)
        except DataError:
            path.unlink(missing_ok=True)
            return RecordFile(path, identity)

    def _write(self, step: int, records: RecordFile, identity: Mapping[str, Any]) -> dict[str, float]:
        scores: dict[str, SetScores] = {}
        versions: dict[str, tuple[int, int]] = {}
        for settings, table in self._sets():
            answered = [records.finished[settings.name, problem.index] for problem in table[:]]
            scores[settings.name] = score_set(answered, settings, seed=self._settings.seed)
            spans = [each.versions for one in answered for each in one.responses if each.versions is not None]
            versions[settings.name] = (
                min((oldest for oldest, _ in spans), default=step),
                max((newest for _, newest in spans), default=step),
            )
        report = Report(
            model=f"{self._settings.model}-step_{step}",
            suite=self._suite.name,
            identity=identity,
            settings={settings.name: settings.model_dump(mode="json") for settings, _ in self._sets()},
            digests=self._problems_digests,
            scores=scores,
            missing=self._found.missing,
            unreadable=self._unreadable,
            versions=versions,
        )
        path = self.folder / _RESULTS.format(step)
        try:
            write_atomically(path, report.to_json())
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror}): free space there.") from error
        found = scalars(scores)
        found |= {f"eval/{name}/version_lag_max": float(newest - step) for name, (_, newest) in versions.items()}
        write_scalars(self._settings.run, found, step=step)
        return found


def find_problems(suite: SuiteSection, data: Path | None) -> Found:
    """Find the files of a run's suite; raises DataError if one is missing.

    Args:
        suite: the suite.
        data: the setting `evaluation.data`; None takes the folder that the variable MEGACOV_DATA names, if it does.

    Returns:
        The sets with their files.
    """
    given = os.environ.get(DATA_VARIABLE)
    folder = data or (Path(given) if given else None)
    return find_sets(suite, (), folder, allow_missing=False, data_setting="evaluation.data")


def _is_whole(answered: Answered | None, settings: EvaluationSet) -> bool:
    """Whether a problem has all its responses; a record that somebody has edited may lack some."""
    return answered is not None and len(answered.responses) == settings.samples


def refuse_code(suite: SuiteSection, *, allow_code: bool) -> None:
    """Refuse a suite that runs programs of responses, where the run does not allow it.

    Args:
        suite: the suite.
        allow_code: the setting `rewards.allow_code`.

    Raises:
        ConfigError: names the set.
    """
    for each in suite.sets:
        found = find_code(
            f"the verifier of the set {each.name} of evaluation.suite", each.verifier, each.verifier_arguments
        )
        place = next(found, None)
        if place is not None and not allow_code:
            raise ConfigError(
                f"{place} is code, which runs the programs of responses on the machine of rank 0, and "
                "rewards.allow_code is false: read docs/code_and_judges.md and set rewards.allow_code=true, or use "
                "another suite."
            )

"""A whole evaluation of one model: servers and verifiers, all sets of a suite, and the report."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from megacov import __version__
from megacov.config.suite import EvaluationSet, SuiteSection
from megacov.data import load_tokenizer
from megacov.data.prompt_table import PromptTable
from megacov.errors import DataError
from megacov.evaluation.identity import model_digest
from megacov.evaluation.problems import Found, find_sets, read_problems
from megacov.evaluation.records import FORMAT, Answered, RecordFile
from megacov.evaluation.report import Report
from megacov.evaluation.sample import Sampling, problem_digest, problems_digest, sample_problems
from megacov.evaluation.servers import ServerSettings, embedded_server, make_fleet, weight_version
from megacov.evaluation.set_scores import SetScores, score_set
from megacov.evaluation.suite import settings_digest
from megacov.evaluation.verdicts import Verifiers
from megacov.files import write_atomically
from megacov.rollout import EmbeddedServer, Fleet
from megacov.types import Prompt

RECORDS, REPORT, LOGS = "responses.jsonl", "results.json", "logs"
_PROGRESS_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A model, a suite, and how it is evaluated.

    name: name of the model in the report.
    model: model folder; running servers hold its weights.
    vocab_size: rows of the model's embedding.
    out: folder of the results.
    data: folder in which the files of sets are looked for before the working folder.
    only: names of the sets to evaluate; empty takes all.
    limit: problems of each set to take, from the first; None takes all.
    stop_token_ids: token ids that end a response, in addition to the model's own.
    """

    name: str
    model: Path
    vocab_size: int
    suite: SuiteSection
    servers: ServerSettings
    out: Path
    seed: int = 0
    data: Path | None = None
    only: Sequence[str] = ()
    limit: int | None = None
    allow_missing: bool = False
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Work:
    """A set with all problems of its file, and those that are evaluated."""

    settings: EvaluationSet
    table: PromptTable
    problems: list[Prompt]


def evaluate(wanted: Evaluation) -> Report:
    """Evaluate a model, and write `results.json` and `responses.jsonl` into the folder of the results.

    Problems that an earlier, stopped evaluation of the same model, suite and seed has finished are not sampled again.

    Args:
        wanted: what is evaluated, and how.

    Returns:
        The report.

    Raises:
        ConfigError: a verifier cannot be imported.
        DataError: the model, a file of problems, an answer in it or the folder of the results is unusable.
        RolloutError: the servers gave no full set of responses.
        RewardError: the verifier's processes cannot be started again.
    """
    found = find_sets(wanted.suite, wanted.only, wanted.data, allow_missing=wanted.allow_missing)
    identity = _identity(wanted)
    with ExitStack() as stack:
        records = stack.enter_context(RecordFile(wanted.out / RECORDS, identity))
        _make_folder(wanted.out / LOGS)
        server = _start_server(wanted, found, stack)  # it loads the model while problems and verifiers are read
        sets = [settings for settings, _ in found.sets]
        verifiers = stack.enter_context(Verifiers(wanted.suite, sets, log_path=wanted.out / LOGS / "verifier.log"))
        work = _read_work(wanted, found, verifiers)
        for each in work:
            _check_finished(records, each, wanted.out / RECORDS)
        if server is not None:
            server.wait_ready(time.monotonic() + wanted.servers.start_timeout_s)
        fleet = make_fleet(server, wanted.servers, vocab_size=wanted.vocab_size)
        unreadable = asyncio.run(_sample_all(wanted, work, records, verifiers, fleet))
        report = _report(wanted, work, records, identity, found.missing, unreadable)
    try:
        write_atomically(wanted.out / REPORT, report.to_json())
    except OSError as error:
        raise DataError(f"{wanted.out / REPORT} cannot be written ({error.strerror}): free space there.") from error
    return report


def _start_server(wanted: Evaluation, found: Found, stack: ExitStack) -> EmbeddedServer | None:
    """Start the embedded server, which the stack stops; None where running servers are given."""
    if wanted.servers.addresses:
        return None
    server = embedded_server(
        wanted.model,
        wanted.servers,
        seed=wanted.seed,
        most_samples=max(settings.samples for settings, _ in found.sets),
        log_path=wanted.out / LOGS / "server.log",
    )
    stack.callback(server.stop)
    server.start()
    return server


def _read_work(wanted: Evaluation, found: Found, verifiers: Verifiers) -> list[_Work]:
    tokenizer = load_tokenizer(wanted.model, vocab_size=wanted.vocab_size)
    work = []
    for settings, path in found.sets:
        keep_rows = verifiers.wants_row(settings)
        table = read_problems(settings, path, tokenizer, vocab_size=wanted.vocab_size, keep_rows=keep_rows)
        work.append(_Work(settings, table, table[: wanted.limit]))
    return work


def _identity(wanted: Evaluation) -> dict[str, object]:
    return {
        "format": FORMAT,
        "megacov_version": __version__,
        "model_digest": model_digest(wanted.model),
        "suite_digest": settings_digest(wanted.suite),
        "seed": wanted.seed,
        "stop_token_ids": list(wanted.stop_token_ids),
        "servers": wanted.servers.identity(),
    }


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror}): name another folder with --out.") from error


def _check_finished(records: RecordFile, work: _Work, path: Path) -> None:
    """Refuse to go on if a problem that was finished is another one now, or if some of its responses are gone."""
    for problem in work.problems:
        finished = records.finished.get((work.settings.name, problem.index))
        if finished is None:
            continue
        if len(finished.responses) != work.settings.samples:
            raise DataError(
                f"{path} holds {len(finished.responses)} responses to problem {problem.index} of {work.settings.name}, "
                f"whose samples is {work.settings.samples}: remove this file, or name another folder with --out."
            )
        if finished.digest != problem_digest(problem):
            raise DataError(
                f"{path} holds problem {problem.index} of {work.settings.name} with another text or answer than its "
                "file has now: name another folder with --out, or remove this one."
            )


async def _sample_all(
    wanted: Evaluation, work: Sequence[_Work], records: RecordFile, verifiers: Verifiers, fleet: Fleet
) -> dict[str, int]:
    """Sample what is left; returns the number of unreadable answers of each set."""
    membership, unreadable = fleet.membership, {}
    try:
        for each in work:
            num_unreadable = await verifiers.check_answers(each.settings, each.problems, each.table.place_of)
            unreadable[each.settings.name] = num_unreadable
        await membership.wait_ready()
        # A server that somebody restarts with other weights is then taken out of service.
        version = await weight_version(membership.serving)
        membership.versions.add(version)
        for each in work:
            left = [problem for problem in each.problems if (each.settings.name, problem.index) not in records.finished]
            progress = _Progress(each.settings.name, num_done=len(each.problems) - len(left), total=len(each.problems))

            def on_answered(answered: Answered, progress: _Progress = progress) -> None:
                records.add(answered)
                progress.advance()

            sampling = Sampling(
                settings=each.settings,
                seed=wanted.seed if wanted.servers.follows_seeds else None,
                max_concurrency=wanted.servers.max_concurrency,
                expected_version=version,
                stop_token_ids=wanted.stop_token_ids,
            )
            judge = verifiers.judge_of(each.settings)
            await membership.watched(sample_problems(fleet, judge, left, sampling, on_answered=on_answered))
            progress.finish()
        return unreadable
    finally:
        await verifiers.aclose()
        await membership.aclose()


def _report(
    wanted: Evaluation,
    work: Sequence[_Work],
    records: RecordFile,
    identity: dict[str, object],
    missing: Sequence[str],
    unreadable: dict[str, int],
) -> Report:
    scores: dict[str, SetScores] = {}
    for each in work:
        answered = [records.finished[each.settings.name, problem.index] for problem in each.problems]
        scores[each.settings.name] = score_set(answered, each.settings, seed=wanted.seed)
    return Report(
        model=wanted.name,
        suite=wanted.suite.name,
        identity=identity,
        settings={each.settings.name: each.settings.model_dump(mode="json") for each in work},
        digests={each.settings.name: problems_digest(each.problems) for each in work},
        scores=scores,
        missing=missing,
        unreadable=unreadable,
    )


class _Progress:
    """Shows how many problems of a set are done: in one line of a terminal, or in a line now and then."""

    def __init__(self, name: str, *, num_done: int, total: int) -> None:
        self._name, self._num_done, self._total = name, num_done, total
        self._is_terminal = sys.stderr.isatty()
        self._shown = time.monotonic()
        if num_done:
            print(f"megacov: {name}: {num_done} of {total} problems were finished before.", flush=True)

    def advance(self) -> None:
        self._num_done += 1
        if time.monotonic() - self._shown >= _PROGRESS_S or (self._is_terminal and self._num_done < self._total):
            self._show("\r" if self._is_terminal else "", "" if self._is_terminal else "\n")

    def finish(self) -> None:
        self._show("\r" if self._is_terminal else "", "\n")

    def _show(self, start: str, end: str) -> None:
        self._shown = time.monotonic()
        text = f"{start}megacov: {self._name}: {self._num_done} of {self._total} problems"
        print(text, end=end, file=sys.stderr, flush=True)

"""Verdicts on the responses of a suite, by one pool of processes with all of its verifiers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from megacov.config.suite import EvaluationSet, SuiteSection
from megacov.errors import DataError
from megacov.evaluation.sample import Judge
from megacov.rewards.answers import AnswerCheck
from megacov.rewards.pool import VerifierPool
from megacov.rewards.process import ProcessSettings, Ready
from megacov.rewards.settings import VerifierSettings
from megacov.rollout.fleet.server_process import environment_without_rank
from megacov.types import Completion, Prompt, Verdict

_CLOSE_TIMEOUT_S = 3.0


def verifier_of(settings: EvaluationSet) -> VerifierSettings:
    """The verifier of a set."""
    return VerifierSettings(
        settings.verifier,
        settings.verifier_arguments,
        setting=f"the set {settings.name}: verifier",
        arguments_setting=f"the set {settings.name}: verifier_arguments",
    )


class Verifiers:
    """The verifiers of a suite; sets with the same verifier and arguments share one. A context.

    Failures score 0. The first of each kind in each set is printed.
    """

    def __init__(
        self, suite: SuiteSection, sets: Sequence[EvaluationSet], *, log_path: Path, is_quiet: bool = False
    ) -> None:
        """Start nothing yet.

        Args:
            suite: how many processes, and their deadlines.
            sets: the sets that are evaluated.
            log_path: file for everything that verifiers print.
            is_quiet: whether they open it with the first verdict only.
        """
        by_key: dict[str, VerifierSettings] = {}
        for each in sets:
            settings = verifier_of(each)
            by_key.setdefault(settings.key, settings)
        self._suite, self._settings, self._is_quiet = suite, tuple(by_key.values()), is_quiet
        self._places = {key: place for place, key in enumerate(by_key)}
        self._ready: tuple[Ready, ...] = ()
        self._failures: Counter[tuple[str, str]] = Counter()
        self._pool = VerifierPool(
            ProcessSettings(verifiers=self._settings, log_path=log_path, environment=environment_without_rank()),
            num_workers=suite.workers,
            timeout_s=suite.timeout_s,
            start_timeout_s=suite.start_timeout_s,
        )

    def __enter__(self) -> Self:
        """Start the processes, and wait until one has imported all verifiers; raises ConfigError or RewardError."""
        try:
            self._pool.start(is_quiet=self._is_quiet)
            self._ready = self._pool.wait_for_first()
        except BaseException:
            self._pool.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all processes."""
        self._pool.close()

    def wants_row(self, settings: EvaluationSet) -> bool:
        """Whether the set's verifier asks for the row of the data."""
        return "row" in self._ready[self._place(settings)].wanted

    def judge_of(self, settings: EvaluationSet) -> Judge:
        """The judge of a set's responses."""
        place = self._place(settings)

        async def judge(prompt: Prompt, completion: Completion) -> Verdict:
            values = {
                "text": completion.text,
                "answer": prompt.answer,
                "prompt": prompt.text,
                "row": prompt.row,
                "finish_reason": completion.finish_reason,
                "num_tokens": len(completion.token_ids),
            }
            wanted = {name: values[name] for name in self._ready[place].wanted}
            outcome = (await self._pool.judge(wanted, verifier=place)).outcome
            if outcome.failure is not None:
                self._note(settings, outcome.failure, f"{settings.verifier} {outcome.reason}")
            return Verdict(outcome.reward, outcome.failure)

        return judge

    async def check_answers(
        self, settings: EvaluationSet, problems: Iterable[Prompt], place_of: Callable[[int], str]
    ) -> int:
        """Look whether the set's verifier can judge against the answers of its problems.

        Args:
            settings: settings of the set.
            problems: its problems.
            place_of: file and line of a problem, by its index.

        Returns:
            The number of answers that it cannot read, where the settings keep those.

        Raises:
            DataError: there are some and the settings refuse them, or not all answers were checked in time.
            RewardError: the verifiers' processes cannot be started again.
        """
        check = AnswerCheck(
            self._pool,
            # The names of the settings are of the first set with the verifier.
            [replace(each, setting="verifier") for each in self._settings],
            self._ready,
            of_source=(self._place(settings),),
            num_workers=self._suite.workers,
            timeout_s=self._suite.start_timeout_s,
        )
        try:
            await check.check(problems, place_of)
        except DataError as error:
            if settings.unreadable_answers == "refuse" or check.num_bad == 0:
                raise DataError(f"the set {settings.name}: {error}") from error
            print(
                f"megacov: warning: {settings.name}: the verifier cannot read {check.num_bad} answers, whose problems "
                "stay in the set.",
                flush=True,
            )
        return check.num_bad

    async def aclose(self) -> None:
        """Give up all verdicts, on the event loop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._pool.aclose(), _CLOSE_TIMEOUT_S)

    def _place(self, settings: EvaluationSet) -> int:
        return self._places[VerifierSettings(settings.verifier, settings.verifier_arguments).key]

    def _note(self, settings: EvaluationSet, failure: str, what: str) -> None:
        self._failures[settings.name, failure] += 1
        if self._failures[settings.name, failure] == 1:
            print(f"megacov: warning: {settings.name}: the verifier {what}, which scores 0.", flush=True)

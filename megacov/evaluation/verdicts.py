"""Verdicts on the responses of a suite: a pool of processes for each of its verifiers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from megacov.config.suite import EvaluationSet, SuiteSection
from megacov.evaluation.sample import Judge
from megacov.rewards.pool import VerifierPool
from megacov.rewards.process import ProcessSettings
from megacov.rollout.fleet.server_process import environment_without_rank
from megacov.types import Completion, Prompt, Verdict

_CLOSE_TIMEOUT_S = 3.0


class Verifiers:
    """The verifiers of a suite; sets with the same verifier and arguments share one pool. A context.

    Failures score 0. The first of each kind in each set is printed.
    """

    def __init__(self, suite: SuiteSection, sets: Sequence[EvaluationSet], *, log_path: Path) -> None:
        """Start the processes; entering the context waits for the first of each pool.

        Args:
            suite: how many processes, and their deadlines.
            sets: the sets that are evaluated.
            log_path: file for everything that verifiers print.

        Raises:
            RewardError: a process cannot be started.
        """
        self._suite, self._log_path = suite, log_path
        self._pools: dict[str, VerifierPool] = {}
        self._wanted: dict[str, tuple[str, ...]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._sets = list(sets)

    def __enter__(self) -> Self:
        """Start all verifiers, and wait until each is imported by one process; raises ConfigError or RewardError."""
        try:
            for each in self._sets:
                if _key(each) not in self._pools:
                    pool = self._pools[_key(each)] = self._make(each)
                    pool.start()
            for key, pool in self._pools.items():
                self._wanted[key] = pool.wait_for_first()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all processes."""
        self.close()

    def wants_row(self, settings: EvaluationSet) -> bool:
        """Whether the set's verifier asks for the row of the data."""
        return "row" in self._wanted[_key(settings)]

    def judge_of(self, settings: EvaluationSet) -> Judge:
        """The judge of a set's responses."""
        pool, wanted = self._pools[_key(settings)], self._wanted[_key(settings)]

        async def judge(prompt: Prompt, completion: Completion) -> Verdict:
            values = {
                "text": completion.text,
                "answer": prompt.answer,
                "prompt": prompt.text,
                "row": prompt.row,
                "finish_reason": completion.finish_reason,
                "num_tokens": len(completion.token_ids),
            }
            outcome = (await pool.judge({name: values[name] for name in wanted})).outcome
            if outcome.failure is not None:
                self._note(settings, outcome.failure, f"{settings.verifier} {outcome.reason}")
            return Verdict(outcome.reward, outcome.failure)

        return judge

    async def aclose(self) -> None:
        """Give up all verdicts, on the event loop."""
        for pool in self._pools.values():
            with suppress(TimeoutError):
                await asyncio.wait_for(pool.aclose(), _CLOSE_TIMEOUT_S)

    def close(self) -> None:
        """End all processes. Safe to call again."""
        for pool in self._pools.values():
            pool.close()

    def _make(self, settings: EvaluationSet) -> VerifierPool:
        process = ProcessSettings(
            name=settings.verifier, log_path=self._log_path, environment=environment_without_rank()
        )
        return VerifierPool(
            process,
            num_workers=self._suite.workers,
            timeout_s=self._suite.timeout_s,
            start_timeout_s=self._suite.start_timeout_s,
        )

    def _note(self, settings: EvaluationSet, failure: str, what: str) -> None:
        self._counts[settings.name, failure] += 1
        if self._counts[settings.name, failure] == 1:
            print(f"megacov: warning: {settings.name}: the verifier {what}, which scores 0.", flush=True)


def _key(settings: EvaluationSet) -> str:
    return json.dumps([settings.verifier, settings.verifier_arguments], sort_keys=True)

"""Looks whether verifiers can judge against the answers of the data, in the processes that judge."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from megacov.config import RunConfig
from megacov.errors import DataError
from megacov.rewards.pool import VerifierPool
from megacov.rewards.process import ProcessSettings, Ready
from megacov.rewards.settings import VerifierSettings, verifiers_of
from megacov.types import Prompt

_FIRST_CHUNK, _LARGEST_CHUNK = 32, 4096  # answers that a process gets at a time
_QUICK_S = 0.1  # after a chunk that took less, the next one is twice as large


@dataclass(slots=True)
class _Found:
    """How many answers were checked, and the bad ones of each verifier: their number, and the first in the data."""

    num_checked: int = 0
    num_bad: int = 0
    first: tuple[int, int, str] | None = None  # index, verifier, reason

    def add(self, index: int, verifier: int, reason: str) -> None:
        self.num_bad += 1
        if self.first is None or index < self.first[0]:
            self.first = (index, verifier, reason)


@dataclass(slots=True)
class AnswerCheck:
    """Checks the answers of a run's prompts.

    pool: the verifiers' processes.
    settings: the verifiers of the pool.
    ready: what each of them asks for.
    of_source: place of the verifier of each source of prompts.
    num_workers: processes of the pool.
    timeout_s: deadline for all answers. [s]
    """

    pool: VerifierPool
    settings: Sequence[VerifierSettings]
    ready: Sequence[Ready]
    of_source: Sequence[int]
    num_workers: int
    timeout_s: float
    _found: _Found = field(default_factory=_Found)

    @property
    def num_bad(self) -> int:
        """Answers so far that their verifier cannot judge against."""
        return self._found.num_bad

    async def check(self, prompts: Iterable[Prompt], place_of: Callable[[int], str]) -> None:
        """Check the answers of all prompts whose verifier looks at answers.

        Args:
            prompts: prompts in the order of the data; they are read one by one.
            place_of: file and line of a prompt, by its index.

        Raises:
            DataError: names the first answer that its verifier cannot judge against and the number of such answers; or
                the answers were not all checked in time.
            RewardError: the verifiers' processes cannot be started again.
        """
        if not any(each.checks_answers for each in self.ready):
            return
        chosen = (each for each in prompts if self.ready[self.of_source[each.source]].checks_answers)
        tasks = [asyncio.create_task(self._check_chunks(chosen)) for _ in range(self.num_workers)]
        try:
            async with asyncio.timeout(self.timeout_s):
                await asyncio.gather(*tasks)
        except TimeoutError as error:
            raise DataError(
                f"The verifiers have looked at {self._found.num_checked} answers of the data within "
                f"rewards.start_timeout_s = {self.timeout_s:g} s, and not yet at all: raise it, or rewards.workers."
            ) from error
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._found.first is not None:
            index, verifier, reason = self._found.first
            raise _bad_answer(self.settings[verifier], place_of(index), reason, num_others=self._found.num_bad - 1)

    async def _check_chunks(self, prompts: Iterator[Prompt]) -> None:
        size = _FIRST_CHUNK
        while chunk := list(islice(prompts, size)):
            since = asyncio.get_running_loop().time()
            for verifier in sorted({self.of_source[each.source] for each in chunk}):
                await self._check_some([each for each in chunk if self.of_source[each.source] == verifier], verifier)
            if asyncio.get_running_loop().time() - since < _QUICK_S:
                size = min(2 * size, _LARGEST_CHUNK)

    async def _check_some(self, prompts: Sequence[Prompt], verifier: int) -> None:
        bad = await self.pool.check_answers(
            [each.answer for each in prompts],
            rows=[each.row or {} for each in prompts] if "row" in self.ready[verifier].wanted else None,
            verifier=verifier,
        )
        if isinstance(bad, str):
            if len(prompts) > 1:  # one of them took the whole time, or ended the process
                for each in prompts:
                    await self._check_some([each], verifier)
                return
            bad = [(0, f"the verifier {self.settings[verifier].name} {bad} when it looked at the answer.")]
        self._found.num_checked += len(prompts)
        for place, reason in bad:
            self._found.add(prompts[place].index, verifier, reason)


def check_answers(config: RunConfig, prompts: Iterable[Prompt], place_of: Callable[[int], str]) -> None:
    """Check the answers of a run's prompts in processes for this alone, no more than this machine has cores.

    Args:
        config: the run's configuration.
        prompts: prompts of the run, read one by one.
        place_of: file and line of a prompt, by its index.

    Raises:
        ConfigError: a verifier cannot be imported or called, or not in time.
        DataError: an answer is one that its verifier cannot judge against, or not all answers were checked in time.
        RewardError: the verifiers' processes cannot be started.
    """
    rewards, verifiers = config.rewards, verifiers_of(config)
    num_workers = min(rewards.workers, os.cpu_count() or 1)
    pool = VerifierPool(
        ProcessSettings(verifiers=verifiers.settings),
        num_workers=num_workers,
        timeout_s=rewards.timeout_s,
        start_timeout_s=rewards.start_timeout_s,
    )

    async def check(ready: Sequence[Ready]) -> None:
        try:
            await AnswerCheck(
                pool,
                verifiers.settings,
                ready,
                verifiers.of_source,
                num_workers=num_workers,
                timeout_s=rewards.start_timeout_s,
            ).check(prompts, place_of)
        finally:
            await pool.aclose()

    try:
        pool.start()
        asyncio.run(check(pool.wait_for_first()))
    finally:
        pool.close()


def _bad_answer(settings: VerifierSettings, place: str, reason: str, *, num_others: int) -> DataError:
    others = f" (and {num_others} more)" if num_others else ""
    reason = reason.rstrip(".").removesuffix("; correct it")
    return DataError(f"{place}{others}: {reason}; correct the answer, or {settings.setting} {settings.name}.")

"""A pool of warm processes that judge responses, each verdict with a deadline."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megacov.errors import ConfigError, RewardError
from megacov.rewards.call import Outcome
from megacov.rewards.frames import pack
from megacov.rewards.process import ProcessSettings, Ready, VerifierProcess, end_processes, wait_for_first

_STARTS = 3  # attempts to replace a process
# A process gets so much work at once, by the time of its last verdict, so that it need not wait for the trainer in
# between. A verdict that takes longer is sent alone, and none waits behind it while another process is free.
_AHEAD_S, _MOST_AHEAD = 0.005, 32


@dataclass(frozen=True, slots=True)
class Judged:
    """The outcome of one verdict, and its times.

    wait_s: until a process was free. [s]
    call_s: from there to the outcome. [s]
    """

    outcome: Outcome
    wait_s: float
    call_s: float


@dataclass(frozen=True, slots=True)
class _Answered:
    """What a process answered; None if it was late."""

    answer: dict[str, Any] | None
    wait_s: float
    call_s: float


@dataclass(frozen=True, slots=True)
class _Job:
    message: bytes
    is_verdict: bool
    since: float
    answered: asyncio.Future[_Answered]


class VerifierPool:
    """Processes that call verifiers. Each judges one response at a time, in the main thread of its process.

    Quick verdicts are sent several at once, and each has its own deadline, from the answer before it.

    A process that is late or dies is ended with everything that it has started, and replaced.
    """

    def __init__(
        self, settings: ProcessSettings, *, num_workers: int, timeout_s: float, start_timeout_s: float
    ) -> None:
        """Start nothing yet.

        Args:
            settings: how a process is started.
            num_workers: number of processes.
            timeout_s: deadline of a verdict, from the moment that a process gets it. [s]
            start_timeout_s: deadline for the import of the verifiers. [s]
        """
        self._settings, self._num_workers = settings, num_workers
        self._timeout_s, self._start_timeout_s = timeout_s, start_timeout_s
        self._processes: list[VerifierProcess] = []
        self._slots: list[asyncio.Task[None]] = []
        self._jobs: asyncio.Queue[_Job] | None = None
        self._broken: str | None = None
        self._quiet_slots: set[int] = set()

    def start(self, *, is_quiet: bool = False) -> None:
        """Start the processes and return at once; `close` ends them.

        Args:
            is_quiet: whether they open the log with the first verdict only, and print nowhere before.

        Raises:
            RewardError: a process cannot be started.
        """
        self._quiet_slots = set(range(self._num_workers)) if is_quiet else set()
        try:
            for slot in range(self._num_workers):
                self._processes.append(self._start(slot))
        except OSError as error:
            raise RewardError(
                f"Process {len(self._processes) + 1} of rewards.workers = {self._num_workers} cannot be started: "
                f"{error.strerror}."
            ) from error

    def wait_for_first(self) -> tuple[Ready, ...]:
        """Wait until one process has imported the verifiers. Blocks; call it between `start` and the first verdict.

        Returns:
            The verifiers in the order of the settings.

        Raises:
            ConfigError: a verifier cannot be imported or called, or not in time.
        """
        ready = next((each.ready for each in self._processes if each.ready is not None), None)
        return ready or wait_for_first(self._processes, timeout_s=self._start_timeout_s)

    async def judge(self, values: Mapping[str, Any], *, verifier: int = 0) -> Judged:
        """Have the next free process judge one response. If the caller is cancelled, the process finishes the verdict.

        Args:
            values: the values that the verifier asks for, by name; they must be JSON.
            verifier: place of the verifier in the settings.

        Returns:
            The outcome; a failure of the verifier is one.

        Raises:
            RewardError: the verifiers' processes cannot be started again.
        """
        answered = await self._ask({"verifier": verifier, "values": dict(values)})
        outcome = _outcome(answered.answer, timeout_s=self._timeout_s)
        return Judged(outcome, answered.wait_s, answered.call_s)

    async def check_answers(
        self, answers: Sequence[str], *, rows: Sequence[Mapping[str, Any]] | None = None, verifier: int = 0
    ) -> list[tuple[int, str]] | str:
        """Have the next free process look at answers of the data.

        Args:
            answers: few enough for all of them to be checked before the deadline of one verdict.
            rows: their rows of the data; None for a verifier that does not ask for them.
            verifier: place of a verifier that checks answers.

        Returns:
            Places of the answers that the verifier cannot judge against, each with the reason; or, if the process was
            late or died, what happened, in words that follow "the verifier".

        Raises:
            RewardError: the verifiers' processes cannot be started again.
        """
        answered = await self._ask({"verifier": verifier, "answers": list(answers), "rows": rows})
        if answered.answer is None or "bad" not in answered.answer:
            return _outcome(answered.answer, timeout_s=self._timeout_s).reason
        return [(place, why) for place, why in answered.answer["bad"]]

    async def _ask(self, message: dict[str, Any]) -> _Answered:
        if self._jobs is None:
            self._jobs = asyncio.Queue()
            self._slots = [asyncio.create_task(self._serve(slot)) for slot in range(self._num_workers)]
        if self._broken is not None:
            raise RewardError(self._broken)
        job = _Job(pack(message), "values" in message, time.monotonic(), asyncio.get_running_loop().create_future())
        self._jobs.put_nowait(job)
        return await job.answered

    async def aclose(self) -> None:
        """Give up all verdicts; call it on the event loop, before `close`."""
        for task in self._slots:
            task.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)

    def close(self) -> None:
        """End all processes and everything that their verifiers have started. Safe to call again."""
        end_processes(self._processes)
        self._processes = []

    async def _serve(self, slot: int) -> None:
        assert self._jobs is not None
        jobs: deque[_Job] = deque()
        why, call_s = "its pool was closed", math.inf
        try:
            await self._processes[slot].wait_started(timeout_s=self._start_timeout_s)
            while True:
                jobs.append(await self._jobs.get())
                while len(jobs) < _MOST_AHEAD and len(jobs) * call_s < _AHEAD_S and not self._jobs.empty():
                    jobs.append(self._jobs.get_nowait())
                for job in [job for job in jobs if job.answered.done()]:
                    jobs.remove(job)
                if slot in self._quiet_slots and any(job.is_verdict for job in jobs):
                    await self._open_log(slot)
                call_s = await self._answer(slot, jobs) if jobs else call_s
        except (ConfigError, OSError) as error:
            why = str(error)
        finally:
            self._break(why, jobs)

    def _start(self, slot: int) -> VerifierProcess:
        is_quiet = slot in self._quiet_slots
        settings = replace(self._settings, log_path=Path(os.devnull)) if is_quiet else self._settings
        return VerifierProcess.start(settings)

    async def _open_log(self, slot: int) -> None:
        self._quiet_slots.discard(slot)
        if self._settings.log_path is not None:
            message = pack({"log": str(self._settings.log_path.absolute())})
            answer = await self._processes[slot].ask(message, timeout_s=self._start_timeout_s)
            if answer is None or "died" in answer:
                await self._replace(slot)

    async def _answer(self, slot: int, jobs: deque[_Job]) -> float:
        """Take jobs off the front as they are answered; returns how long the last of them took. [s]"""
        num_tries, call_s = 0, 0.0
        messages = b"".join(job.message for job in jobs)
        while jobs:
            since = time.monotonic()
            answer = await self._processes[slot].ask(messages, timeout_s=self._timeout_s)
            is_lost, messages = answer is None or "died" in answer, b""
            num_tries += 1
            # If it died while it was idle, that is not this response's failure.
            if answer is None or not is_lost or self._processes[slot].has_begun or num_tries == _STARTS:
                job, num_tries, call_s = jobs.popleft(), 0, time.monotonic() - since
                if not job.answered.done():
                    job.answered.set_result(_Answered(answer, since - job.since, call_s))
            if is_lost:
                await self._replace(slot)
                messages = b"".join(job.message for job in jobs)
        return call_s

    async def _replace(self, slot: int) -> None:
        for attempt in range(1, _STARTS + 1):
            await self._processes[slot].end()
            self._processes[slot] = self._start(slot)
            try:
                await self._processes[slot].wait_started(timeout_s=self._start_timeout_s)
            except ConfigError:
                if attempt == _STARTS:
                    raise
            else:
                return

    def _break(self, why: str, begun: Iterable[_Job]) -> None:
        """Fail these verdicts and all from now on. Other slots may serve, but a run must not slow down unnoticed."""
        assert self._jobs is not None
        names = ", ".join(each.name for each in self._settings.verifiers)
        self._broken = f"The verifier {names} could not be started again: {why}"
        jobs = [*begun]
        while not self._jobs.empty():
            jobs.append(self._jobs.get_nowait())
        for each in jobs:
            if not each.answered.done():
                each.answered.set_exception(RewardError(self._broken))


def _outcome(answer: dict[str, Any] | None, *, timeout_s: float) -> Outcome:
    if answer is None:
        return Outcome(0.0, "timeout", f"did not return within rewards.timeout_s = {timeout_s:g} s")
    if "died" in answer:
        return Outcome(0.0, "died", f"ended its process ({answer['died']})")
    return Outcome(float(answer["reward"]), answer["failure"], answer["reason"])

"""Ranks on this machine: start them, pass signals on to them, and end them together."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from megacov.errors import LeaveRequested, RankError
from megacov.launch.heartbeat import HEARTBEAT_VARIABLE, read_stacks, silence_of
from megacov.launch.process import PARENT_PID_VARIABLE, noted_signals, stop_processes
from megacov.launch.rank_environment import STORE_VARIABLE

_POLL_S = 0.05
_SAME_REASON_S = 2.0


class NodePlace(NamedTuple):
    """This machine among several that each run equally many ranks of one run."""

    number: int
    nodes: int


def run_local_ranks(
    command: Sequence[str],
    *,
    num_ranks: int,
    grace_s: float = 10.0,
    leave_s: float | None = None,
    hang_s: float = math.inf,
    node: NodePlace | None = None,
    on_failure: Callable[[int], None] = lambda code: None,
    on_signal: Callable[[int], None] = lambda number: None,
) -> int:
    """Run the command once for each rank, as child processes, and return when all have ended.

    Every rank gets RANK, LOCAL_RANK, WORLD_SIZE, MEGACOV_STORE (path of a FileStore), MEGACOV_PARENT_PID, and
    OMP_NUM_THREADS=1 unless it is set. A rank must call `die_with_parent` before anything else, so that no rank
    outlives this process. If there are several nodes, ranks get no MEGACOV_STORE: they meet at MASTER_ADDR and
    MASTER_PORT, which must be in this process's environment. Output passes through. SIGINT, SIGTERM, SIGUSR1 and SIGHUP
    are passed on once. After SIGINT, which saves nothing, a second SIGINT or SIGTERM kills the ranks. After the others,
    ranks may be saving: a repeated signal only prints how long they have left, and the second SIGINT kills them. SIGHUP
    that is ignored at the start, as under `nohup`, stays ignored. If a rank fails, the others are stopped. If a rank's
    heartbeat shows that it hangs, its stacks are written to stderr and it is killed. Call this from the main thread.

    Args:
        command: program and arguments of every rank.
        num_ranks: number of ranks on this machine.
        grace_s: seconds between SIGTERM and SIGKILL for the ranks that are stopped because another failed.
        leave_s: seconds in which ranks must end after a signal was passed on; None for grace_s.
        hang_s: seconds after which a rank with a silent heartbeat counts as hanging.
        node: place of this machine among several; None if it runs all ranks.
        on_failure: called with the exit code of the first rank that fails, before the others are stopped.
        on_signal: called with the number of a signal after it was passed on.

    Returns:
        0 if every rank ended with 0, even if this process was asked to stop. Otherwise, if this process was asked to
        stop, the exit code of ranks that left with a checkpoint (LeaveRequested), or 128 plus the signal. Otherwise the
        exit code of the first rank that failed: 128 plus the signal for a rank that a signal ended, and the code of
        RankError for a rank that hung.
    """
    ranks: list[subprocess.Popen[bytes]] = []
    first_number = node.number * num_ranks if node else 0
    caught = _CaughtSignals()
    with tempfile.TemporaryDirectory(prefix="megacov-ranks-") as folder, noted_signals(caught.note):
        try:
            for rank in range(num_ranks):
                environment = _environment_of(rank, num_ranks=num_ranks, folder=Path(folder), node=node)
                # In a session of its own, a rank does not get the terminal's Ctrl-C, which this process passes on once.
                ranks.append(subprocess.Popen(command, env=environment, start_new_session=True))
            watch = _HangWatch(Path(folder), ranks, first_number=first_number, hang_s=hang_s)
            leave_s = grace_s if leave_s is None else leave_s
            first_failure = _supervise(ranks, caught, watch, on_failure, on_signal, grace_s=grace_s, leave_s=leave_s)
        finally:
            stop_processes(ranks, grace_s=0.0)
    ended_well = all(rank.returncode == 0 for rank in ranks)
    if caught.first is not None and not ended_well and first_failure != LeaveRequested.exit_code:
        return 128 + caught.first
    return first_failure


def _environment_of(rank: int, *, num_ranks: int, folder: Path, node: NodePlace | None) -> dict[str, str]:
    number, nodes = node or (0, 1)
    return {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "RANK": str(number * num_ranks + rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nodes * num_ranks),
        **({} if node else {STORE_VARIABLE: str(folder / "store")}),
        HEARTBEAT_VARIABLE: str(_heartbeat_file(folder, rank)),
        PARENT_PID_VARIABLE: str(os.getpid()),
    }


def _heartbeat_file(folder: Path, local_rank: int) -> Path:
    return folder / f"heartbeat_{local_rank}"


class _HangWatch:
    """Looks for ranks with a silent heartbeat, and kills them."""

    def __init__(
        self, folder: Path, ranks: Sequence[subprocess.Popen[bytes]], *, first_number: int, hang_s: float
    ) -> None:
        self._files = [_heartbeat_file(folder, local_rank) for local_rank in range(len(ranks))]
        self._ranks, self._first_number, self._hang_s = ranks, first_number, hang_s
        self._next_look = 0.0

    def end_hanging(self) -> bool:
        """Print the stacks of ranks that hang, and kill them. True if there were any."""
        if self._hang_s == math.inf or time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + min(1.0, self._hang_s / 4)
        silent = [(silence_of(file, deadline_s=self._hang_s), i) for i, file in enumerate(self._files)]
        hanging = [(found, i) for found, i in silent if found is not None and self._ranks[i].poll() is None]
        # Ranks that wait for a hanging one are silent as well, but not for as long.
        for found, i in sorted(hanging, key=lambda each: -each[0].seconds):
            stacks = read_stacks(self._files[i], self._ranks[i].pid) or "(unknown: it may be stuck inside the kernel)"
            print(
                f"megacov: rank {self._first_number + i} {found} {found.seconds:.0f} s and counts as hanging "
                f"(0.8 x parallel.timeout_s is {self._hang_s:g} s). Its threads:\n{stacks}",
                file=sys.stderr,
                flush=True,
            )
        for _, i in hanging:
            self._ranks[i].kill()
        return bool(hanging)


def _supervise(
    ranks: Sequence[subprocess.Popen[bytes]],
    caught: _CaughtSignals,
    watch: _HangWatch,
    on_failure: Callable[[int], None],
    on_signal: Callable[[int], None],
    *,
    grace_s: float,
    leave_s: float,
) -> int:
    """Watch the ranks until all have ended. Returns the exit code of the first failure, or 0."""
    first_failure = 0
    passed_on = False
    terminate_at = kill_at = math.inf
    while True:
        alive = [rank for rank in ranks if rank.poll() is None]
        failures = [rank.returncode for rank in ranks if rank.returncode]
        if not failures and watch.end_hanging():
            failures = [RankError.exit_code]
        now = time.monotonic()
        if failures and not first_failure:
            first_failure = failures[0] if failures[0] > 0 else 128 - failures[0]
            if caught.first is None:
                on_failure(first_failure)
            # Other ranks that fail for the same reason get time to report it before they are stopped.
            terminate_at = min(terminate_at, now + min(grace_s, _SAME_REASON_S))
        if not alive:
            return first_failure
        if caught.first is not None and not passed_on:
            passed_on = True
            _send(alive, caught.first)
            on_signal(caught.first)
            terminate_at = min(terminate_at, now + leave_s)
        if caught.is_repeated:
            caught.is_repeated = False
            left_s = max(0.0, min(terminate_at, kill_at) - now)
            print(
                f"megacov: the ranks have {left_s:.0f} s left to save and leave; {caught.remedy} ends them unsaved.",
                file=sys.stderr,
                flush=True,
            )
        if now >= terminate_at:
            _send(alive, signal.SIGTERM)
            terminate_at, kill_at = math.inf, min(kill_at, now + grace_s)
        if now >= kill_at or caught.is_impatient:
            _send(alive, signal.SIGKILL)
            return first_failure
        time.sleep(_POLL_S)


def _send(processes: Sequence[subprocess.Popen[bytes]], signal_number: int) -> None:
    for process in processes:
        process.send_signal(signal_number)


class _CaughtSignals:
    """The signals of `noted_signals`."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.is_repeated = False
        self.is_impatient = False
        self._has_interrupted = False

    def note(self, number: int) -> None:
        if self.first is None:
            self.first = number
        elif self.first == signal.SIGINT:
            self.is_impatient |= number in (signal.SIGINT, signal.SIGTERM)
        else:
            # Schedulers and terminals repeat the others, so only a person's repeated Ctrl-C ends a save.
            self.is_impatient |= self._has_interrupted and number == signal.SIGINT
            self._has_interrupted |= number == signal.SIGINT
            self.is_repeated = True

    @property
    def remedy(self) -> str:
        """The way to end ranks that save, in words."""
        return "one more Ctrl-C" if self._has_interrupted else "Ctrl-C twice"

"""Runs of a sweep on this machine: each a `megacov train` in a session of its own, which ends with this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megacov.checkpoint.lock import find_holder
from megacov.config import write_override
from megacov.errors import DataError, exit_meaning
from megacov.launch.process import FOLLOWED_PID_VARIABLE
from megacov.monitor.run_end import read_end
from megacov.sweep.folder import Outcome, SweepFolder, has_checkpoint
from megacov.sweep.setting import SweepRun

# Ranks that are stopped without saving have this long; then their launcher is killed, and they end with it.
_STOP_S = 20.0
# Beyond checkpoint.grace_s, for the launcher and its ranks to close everything.
_CLOSING_S = 30.0
_LOCK_S = 60.0
_LOG_BYTES = 4096
_POLL_S = 0.05


@dataclass
class _Process:
    run: SweepRun
    popen: subprocess.Popen[bytes]
    started: float


class LocalPlace:
    """Starts runs on this machine, watches them and ends them. Use it from the main thread only."""

    begins = "starts"

    def __init__(self, folder: SweepFolder, *, timeout_s: float | None) -> None:
        """Start nothing yet.

        Args:
            folder: folder of the sweep.
            timeout_s: longest time from the start of a run, or from its last one. [s]
        """
        self._folder, self._timeout_s = folder, timeout_s
        self._processes: dict[str, _Process] = {}

    def start(self, runs: Sequence[SweepRun]) -> None:
        """Start runs, or continue them from their newest checkpoints.

        Args:
            runs: runs that are not over.

        Raises:
            DataError: another process holds the folder of a run, or its log cannot be written.
        """
        for run in runs:
            self._start(run)

    def _start(self, run: SweepRun) -> None:
        _wait_until_free(run.directory)
        own = {"run.name": run.name, "run.seed": run.seed, "run.directory": str(run.directory)}
        settings = [write_override(*each) for each in own.items()]
        words = ["train", str(self._folder.config_of(run.setting)), *settings]
        if has_checkpoint(run):
            words = ["resume", str(run.directory)]
        path = self._folder.log_of(run)
        try:
            with path.open("ab") as log:
                popen = subprocess.Popen(
                    [sys.executable, "-m", "megacov", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, FOLLOWED_PID_VARIABLE: str(os.getpid())},
                    start_new_session=True,  # so that the terminal's Ctrl-C does not reach it, and its group is its own
                )
        except OSError as error:
            raise DataError(f"{path} cannot be written, or Python not started: {error.strerror}.") from error
        self._processes[run.name] = _Process(run, popen, time.time())

    def poll(self, run: SweepRun) -> Outcome | None:
        """How a run ended; None while it trains. A run that takes longer than the deadline is ended."""
        process = self._processes[run.name]
        code, seconds = process.popen.poll(), time.time() - process.started
        if code is None:
            if self._timeout_s is None or seconds < self._timeout_s:
                return None
            self.stop(run)
            return Outcome("failed", 128 + signal.SIGKILL, f"timeout_s is {self._timeout_s:g}: it took longer", seconds)
        del self._processes[run.name]
        if code == 0:
            return Outcome("done", seconds=seconds)
        code = code if code > 0 else 128 - code
        return Outcome("failed", code, self._reason(process, code), seconds)

    def stop(self, run: SweepRun) -> float:
        """End a run at once, without saving.

        Args:
            run: a run that trains.

        Returns:
            How long it ran. [s]
        """
        process = self._processes.pop(run.name)
        _end_all([process.popen], signal.SIGINT, within_s=_STOP_S)
        return time.time() - process.started

    def leave(self, is_impatient: Callable[[], bool]) -> None:
        """End all runs, so that they continue when the sweep does: they may save a checkpoint first.

        Args:
            is_impatient: whether somebody no longer wants to wait for that.
        """
        processes = list(self._processes.values())
        self._processes.clear()
        grace_s = max((each.run.setting.config.checkpoint.grace_s for each in processes), default=0.0) + _CLOSING_S
        _end_all([each.popen for each in processes], signal.SIGTERM, within_s=grace_s, is_impatient=is_impatient)

    def _reason(self, process: _Process, code: int) -> str:
        with suppress(OSError):
            end = read_end(process.run.directory, since=process.started)
            if end is not None and end.reason:
                return end.reason
            with self._folder.log_of(process.run).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
            found = [line.removeprefix("megacov: ") for line in lines if line.startswith("megacov: ")]
            if found and code < 128:
                return found[-1][:300]
        return exit_meaning(code)


def _end_all(
    processes: Sequence[subprocess.Popen[bytes]],
    number: signal.Signals,
    *,
    within_s: float,
    is_impatient: Callable[[], bool] = lambda: False,
) -> None:
    """Signal launchers, which pass it on to their ranks, and kill those that are left; ranks end with them."""
    for process in processes:
        process.send_signal(number)
    deadline = time.monotonic() + within_s
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline or is_impatient():
            break
        time.sleep(_POLL_S)
    for process in processes:
        if process.poll() is None:  # otherwise its number may be another group's by now
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_free(directory: Path) -> None:
    """Ranks of a sweep that was killed end a moment after it, and hold their run until then."""
    deadline = time.monotonic() + _LOCK_S
    while (holder := find_holder(directory)) is not None and holder.is_held:
        if time.monotonic() > deadline:
            raise DataError(f"{directory} is in use by {holder.description}: wait for it, or stop it.")
        time.sleep(0.1)

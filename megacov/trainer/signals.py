"""Ends a process on a signal: at once by unwinding the stack, or after a checkpoint if there is something to save."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from megacov.launch.output import write_now
from megacov.launch.process import without_ignored_hangup

AT_ONCE = (signal.SIGINT,)
# Signals that schedulers send before they end a job, and that a closed terminal sends.
WITH_CHECKPOINT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_SIGNALS = (*AT_ONCE, *WITH_CHECKPOINT)
# SLURM signals all processes of a step, so a rank gets one signal from it and the same one from its launcher.
_TWICE_S = 1.0


class SignalExit:
    """Tells whether a signal has asked this process to leave, and how it leaves."""

    def __init__(self) -> None:
        """Start without a request and with nothing to save."""
        self.asked: signal.Signals | None = None
        self._exit_code: int | None = None
        self._grace_s: float | None = None
        self._interrupt: Callable[[], None] = lambda: None
        self._deadline: threading.Timer | None = None
        self._asked_at = self._leave_by = 0.0
        self._has_interrupted = False

    def save_first(self, *, grace_s: float, interrupt: Callable[[], None]) -> None:
        """From now on, only record SIGTERM, SIGUSR1 and SIGHUP in `asked`; the run then saves and exits by itself.

        Args:
            grace_s: seconds from the signal to a forced exit.
            interrupt: function to cancel work that need not finish; the handler calls it in the main thread.
        """
        self._grace_s, self._interrupt = grace_s, interrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Args:
            number: signal number.
            frame: unused.

        Raises:
            SystemExit: 128 + number, unless the run saves first: then only the second SIGINT ends it before its grace
                is over, and other signals print how long is left. Further signals are then ignored.
        """
        if self.asked is not None and not (number == signal.SIGINT and self._has_interrupted):
            if number == self.asked and time.monotonic() < self._asked_at + _TWICE_S:
                return
            self._has_interrupted |= number == signal.SIGINT
            left_s = max(0.0, self._leave_by - time.monotonic())
            more = "one more Ctrl-C" if self._has_interrupted else "Ctrl-C twice"
            write_now(f"megacov: saving, with {left_s:.0f} s of checkpoint.grace_s left; {more} ends it now, unsaved.")
            return
        if self.asked is None and number in WITH_CHECKPOINT and self._grace_s is not None:
            self.asked = signal.Signals(number)
            self._asked_at = time.monotonic()
            self._leave_by = self._asked_at + self._grace_s
            self._deadline = threading.Timer(self._grace_s, self._give_up, (self._grace_s, number))
            self._deadline.daemon = True
            self._deadline.start()
            self._interrupt()
            return
        # The launcher and the terminal may both send a signal. A second one must not interrupt the cleanup.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self._exit_code = 128 + number
        raise SystemExit(self._exit_code)

    def check(self) -> None:
        """Exit now if a signal came earlier. Python drops exceptions raised inside `__del__` and other callbacks.

        Raises:
            SystemExit: a signal has come that does not wait for a checkpoint.
        """
        if self._exit_code is not None:
            raise SystemExit(self._exit_code)

    def close(self) -> None:
        """Cancel the deadline, because the process is exiting."""
        if self._deadline is not None:
            self._deadline.cancel()

    @staticmethod
    def _give_up(grace_s: float, number: int) -> None:
        print(
            f"megacov: not saved within checkpoint.grace_s={grace_s:g} seconds: leaving.", file=sys.stderr, flush=True
        )
        os._exit(128 + number)


@contextmanager
def leave_on_signals() -> Iterator[SignalExit]:
    """Inside, the first SIGINT, SIGTERM, SIGUSR1 or SIGHUP ends this process from the main thread; see `SignalExit`.

    SIGHUP stays ignored if it is when this begins, as under `nohup`. On exit the previous handlers return, except that
    signals for a checkpoint stay ignored once one has been obeyed.

    Yields:
        The signal state, which the caller must check between steps.

    Raises:
        SystemExit: a signal has come that does not wait for a checkpoint. It replaces any later error, because
            interrupted code may fail (`shutil.rmtree` closes a descriptor a second time).
    """
    leaving = SignalExit()
    before = {number: signal.signal(number, leaving.handle) for number in without_ignored_hangup(_SIGNALS)}
    try:
        yield leaving
    finally:
        leaving.close()
        for number, handler in before.items():
            # A second signal would kill a rank that has saved and is shutting down, and so change its exit code.
            is_over = leaving.asked is not None and number in WITH_CHECKPOINT
            signal.signal(number, signal.SIG_IGN if is_over else handler)
        leaving.check()

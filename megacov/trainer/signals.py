"""Ends a process on a signal: at once by unwinding the stack, or after a checkpoint if there is something to save."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

AT_ONCE = (signal.SIGINT,)
# Signals that schedulers send before they end a job.
WITH_CHECKPOINT = (signal.SIGTERM, signal.SIGUSR1)
_SIGNALS = (*AT_ONCE, *WITH_CHECKPOINT)


class SignalExit:
    """Tells whether a signal has asked this process to leave, and how it leaves."""

    def __init__(self) -> None:
        """Start without a request and with nothing to save."""
        self.asked: signal.Signals | None = None
        self._exit_code: int | None = None
        self._grace_s: float | None = None
        self._interrupt: Callable[[], None] = lambda: None
        self._deadline: threading.Timer | None = None

    def save_first(self, *, grace_s: float, interrupt: Callable[[], None]) -> None:
        """From now on, only record SIGTERM and SIGUSR1 in `asked`; the run then saves and exits by itself.

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
            SystemExit: 128 + number, unless the run saves first. Further signals are then ignored.
        """
        if number in WITH_CHECKPOINT and self._grace_s is not None:
            if self.asked is None:
                self.asked = signal.Signals(number)
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
    """Inside, the first SIGINT, SIGTERM or SIGUSR1 ends this process from the main thread; see `SignalExit`.

    On exit the previous handlers return, except that signals for a checkpoint stay ignored once one has been obeyed.

    Yields:
        The signal state, which the caller must check between steps.

    Raises:
        SystemExit: a signal has come that does not wait for a checkpoint. It replaces any later error, because
            interrupted code may fail (`shutil.rmtree` closes a descriptor a second time).
    """
    leaving = SignalExit()
    before = {number: signal.signal(number, leaving.handle) for number in _SIGNALS}
    try:
        yield leaving
    finally:
        leaving.close()
        for number, handler in before.items():
            # A second signal would kill a rank that has saved and is shutting down, and so change its exit code.
            is_over = leaving.asked is not None and number in WITH_CHECKPOINT
            signal.signal(number, signal.SIG_IGN if is_over else handler)
        leaving.check()

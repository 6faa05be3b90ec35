"""Leaving on request: at once by unwinding the stack, or, once there is something to save, at the next good moment."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

AT_ONCE = (signal.SIGINT,)
# What schedulers send before they end a job.
WITH_CHECKPOINT = (signal.SIGTERM, signal.SIGUSR1)
_SIGNALS = (*AT_ONCE, *WITH_CHECKPOINT)


class SignalExit:
    """Whether a signal has asked this process to leave, and how."""

    def __init__(self) -> None:
        """Nothing was asked yet, and there is nothing to save."""
        self.asked: signal.Signals | None = None
        self._exit_code: int | None = None
        self._grace_s: float | None = None
        self._interrupt: Callable[[], None] = lambda: None
        self._deadline: threading.Timer | None = None

    def save_first(self, *, grace_s: float, interrupt: Callable[[], None]) -> None:
        """From now on SIGTERM and SIGUSR1 are only noted in `asked`: the run saves, and leaves by itself.

        Args:
            grace_s: seconds after which this process ends all the same.
            interrupt: called inside the handler, in the main thread; shortens what need not be finished.
        """
        self._grace_s, self._interrupt = grace_s, interrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Args:
            number: of the signal.
            frame: unused.

        Raises:
            SystemExit: 128 + number, unless the run is to save first; further signals are then ignored.
        """
        if number in WITH_CHECKPOINT and self._grace_s is not None:
            if self.asked is None:
                self.asked = signal.Signals(number)
                self._deadline = threading.Timer(self._grace_s, self._give_up, (self._grace_s, number))
                self._deadline.daemon = True
                self._deadline.start()
                self._interrupt()
            return
        # The launcher and the terminal may both send one: a second signal must not cut the closing short.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self._exit_code = 128 + number
        raise SystemExit(self._exit_code)

    def check(self) -> None:
        """Leave now if a signal came before. Python drops what is raised inside `__del__` and other callbacks.

        Raises:
            SystemExit: a signal has come that does not wait for a checkpoint.
        """
        if self._exit_code is not None:
            raise SystemExit(self._exit_code)

    def close(self) -> None:
        """Forget the deadline: the process is leaving."""
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
    """Inside, the first SIGINT, SIGTERM or SIGUSR1 makes this process leave, in the main thread; see `SignalExit`.

    Afterwards signals are handled as before, but for those that ask for a checkpoint once one of them has been obeyed.

    Yields:
        The memory of it, to be checked now and then.

    Raises:
        SystemExit: a signal has come that does not wait for a checkpoint, whatever else was raised since: what it
            interrupts may fail of that (`shutil.rmtree` closes a descriptor a second time).
    """
    leaving = SignalExit()
    before = {number: signal.signal(number, leaving.handle) for number in _SIGNALS}
    try:
        yield leaving
    finally:
        leaving.close()
        for number, handler in before.items():
            # Sent again to one that has saved and is about to end, it would hide the exit code.
            is_over = leaving.asked is not None and number in WITH_CHECKPOINT
            signal.signal(number, signal.SIG_IGN if is_over else handler)
        leaving.check()

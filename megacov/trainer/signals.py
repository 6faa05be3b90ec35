"""Leaving on request: SIGINT and SIGTERM unwind the stack, so that everything a run opened is closed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class SignalExit:
    """Whether a signal has asked this process to leave."""

    code: int | None = None

    def leave(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: raise SystemExit(128 + number), and ignore further ones.

        Args:
            number: of the signal.
            frame: unused.

        Raises:
            SystemExit: always.
        """
        # The launcher and the terminal may both send one: a second signal must not cut the closing short.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self.code = 128 + number
        raise SystemExit(self.code)

    def check(self) -> None:
        """Leave now if a signal came before. Python drops what is raised inside `__del__` and other callbacks.

        Raises:
            SystemExit: a signal has come.
        """
        if self.code is not None:
            raise SystemExit(self.code)


@contextmanager
def leave_on_signals() -> Iterator[SignalExit]:
    """Inside, the first SIGINT or SIGTERM raises SystemExit(128 + number) in the main thread; others are ignored.

    Yields:
        The memory of it, to be checked now and then.
    """
    leaving = SignalExit()
    before = {number: signal.signal(number, leaving.leave) for number in _SIGNALS}
    try:
        yield leaving
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

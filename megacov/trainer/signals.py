"""Leaving on request: SIGINT and SIGTERM unwind the stack, so that everything a run opened is closed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _leave(number: int, frame: FrameType | None) -> None:
    # The launcher and the terminal may both send one: a second signal must not cut the closing short.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


@contextmanager
def leave_on_signals() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises SystemExit(128 + number) in the main thread; others are ignored."""
    before = {number: signal.signal(number, _leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Wait for things that other processes do, always with a deadline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Return when the condition holds; fail after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened within {timeout_s:g} s"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def read_pids(folder: Path, number: int) -> list[int]:
    """Process ids that processes wrote, one in the name of each file of a folder; waits until there are so many."""
    wait_until(lambda: len(list(folder.iterdir())) >= number)
    return [int(path.name) for path in folder.iterdir()]

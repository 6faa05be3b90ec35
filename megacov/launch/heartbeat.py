"""Whether a rank still moves: it says so in a small file, and the process that started it reads along.

Two things are said. A thread says every second that the process runs at all. The main thread says what it computes, and
says it anew with every micro-batch; while it waits for something that has a deadline of its own, such as rollout
servers, it says nothing. A rank that is silent for too long is told by a signal to write the stacks of its threads,
which `faulthandler` does even while the interpreter is stuck in native code.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

HEARTBEAT_VARIABLE = "MEGACOV_HEARTBEAT"

_INTERVAL_S = 1.0
_STACK_WAIT_S = 2.0
# Of the monotonic clock, which all processes of a machine share. Two slots, as two threads write.
_ALIVE = struct.Struct("d")
_DOING = struct.Struct("d48s")
_DOING_OFFSET = 64
_SIZE = _DOING_OFFSET + _DOING.size


class _Pulse:
    """The file of this process, open for writing."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.truncate(self._descriptor, _SIZE)
        self.phase = ""

    def say_alive(self) -> None:
        os.pwrite(self._descriptor, _ALIVE.pack(time.monotonic()), 0)

    def say_doing(self) -> None:
        os.pwrite(self._descriptor, _DOING.pack(time.monotonic(), self.phase.encode()), _DOING_OFFSET)


# Of the process, as signals and the parent are.
_pulse: _Pulse | None = None


def start_heartbeat(environment: Mapping[str, str] = os.environ) -> None:
    """Let the process that started this one know that it runs; does nothing where nobody reads along.

    Args:
        environment: names the file.
    """
    global _pulse
    if HEARTBEAT_VARIABLE not in environment:
        return
    path = Path(environment[HEARTBEAT_VARIABLE])
    # Kept open for the life of the process: faulthandler writes to the descriptor.
    stacks = _stacks_of(path).open("w", encoding="utf-8")
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
    _pulse = _Pulse(path)
    _pulse.say_alive()
    threading.Thread(target=_say_alive, args=(_pulse,), name="heartbeat", daemon=True).start()


def _say_alive(pulse: _Pulse) -> None:
    while True:
        pulse.say_alive()
        time.sleep(_INTERVAL_S)


@contextmanager
def computing(phase: str) -> Iterator[None]:
    """Inside, the main thread must move: `beat` more often than the deadline is long.

    Args:
        phase: a word for users.
    """
    if _pulse is not None:
        _pulse.phase = phase
        _pulse.say_doing()
    try:
        yield
    finally:
        if _pulse is not None:
            _pulse.phase = ""
            _pulse.say_doing()


def beat() -> None:
    """Say that the main thread moves."""
    if _pulse is not None:
        _pulse.say_doing()


class Silence(NamedTuple):
    """A process that is taken to hang.

    phase: that the main thread does not come out of; empty if the whole process stands still.
    """

    phase: str
    seconds: float

    def __str__(self) -> str:
        """For users."""
        return f"has been in {self.phase} for" if self.phase else "has not run for"


def silence_of(path: Path, *, deadline_s: float) -> Silence | None:
    """Read along.

    Args:
        path: of the file, which need not be there yet.
        deadline_s: a longer silence counts.

    Returns:
        What the process hangs in; None where it moves, waits, or has not begun.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(content) < _SIZE:
        return None
    now = time.monotonic()
    (alive,) = _ALIVE.unpack_from(content)
    moved, phase = _DOING.unpack_from(content, _DOING_OFFSET)
    if alive and now - alive > deadline_s:
        return Silence("", now - alive)
    phase = phase.rstrip(b"\0").decode()
    if phase and now - moved > deadline_s:
        return Silence(phase, now - moved)
    return None


def read_stacks(path: Path, pid: int) -> str:
    """Have a process write the stacks of its threads.

    Args:
        path: of its heartbeat.
        pid: its id; a process that was stopped runs on for this.

    Returns:
        What it has written in two seconds; empty if it could not, as while the kernel waits for a file system.
    """
    os.kill(pid, signal.SIGUSR2)
    os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + _STACK_WAIT_S
    while time.monotonic() < deadline:
        time.sleep(0.2)
        stacks = _stacks_of(path).read_text(encoding="utf-8", errors="replace")
        if stacks:
            return stacks
    return ""


def _stacks_of(path: Path) -> Path:
    return path.with_suffix(".stacks")

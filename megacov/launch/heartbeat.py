"""Heartbeats: each rank notes in a small file that it makes progress, and the process that started it reads the file.

The file has two entries. A thread updates the first one every second, to show that the process runs at all. The main
thread notes in the second one what it computes, and again with every micro-batch; while it waits for something with a
deadline of its own, such as rollout servers, it clears the entry. If a rank is silent for too long, its parent sends a
signal, and `faulthandler` writes the stacks of its threads, even while the interpreter is stuck in native code.
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
# Times are of the monotonic clock, which all processes of a machine share. Two slots, because two threads write.
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

    def note_alive(self) -> None:
        os.pwrite(self._descriptor, _ALIVE.pack(time.monotonic()), 0)

    def note_phase(self) -> None:
        os.pwrite(self._descriptor, _DOING.pack(time.monotonic(), self.phase.encode()), _DOING_OFFSET)


# One for the whole process: there is one parent, and one set of signal handlers.
_pulse: _Pulse | None = None


def start_heartbeat(environment: Mapping[str, str] = os.environ) -> None:
    """Begin to show the parent that this process runs. Does nothing if the environment names no heartbeat file."""
    global _pulse
    if HEARTBEAT_VARIABLE not in environment:
        return
    path = Path(environment[HEARTBEAT_VARIABLE])
    # Kept open for the life of the process: faulthandler writes to the descriptor.
    stacks = _stacks_of(path).open("w", encoding="utf-8")
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
    _pulse = _Pulse(path)
    _pulse.note_alive()
    threading.Thread(target=_keep_alive, args=(_pulse,), name="heartbeat", daemon=True).start()


def _keep_alive(pulse: _Pulse) -> None:
    while True:
        pulse.note_alive()
        time.sleep(_INTERVAL_S)


@contextmanager
def computing(phase: str) -> Iterator[None]:
    """Inside, the main thread must call `beat` more often than the deadline is long.

    Args:
        phase: word for the computation, shown to users if it hangs.
    """
    if _pulse is not None:
        _pulse.phase = phase
        _pulse.note_phase()
    try:
        yield
    finally:
        if _pulse is not None:
            _pulse.phase = ""
            _pulse.note_phase()


def beat() -> None:
    """Note that the main thread makes progress."""
    if _pulse is not None:
        _pulse.note_phase()


class Silence(NamedTuple):
    """A process that counts as hanging.

    phase: computation in which the main thread is stuck; empty if the whole process stands still.
    """

    phase: str
    seconds: float

    def __str__(self) -> str:
        """The beginning of a sentence for users; the number of seconds follows."""
        return f"has been in {self.phase} for" if self.phase else "has not run for"


def silence_of(path: Path, *, deadline_s: float) -> Silence | None:
    """Read the heartbeat of a process.

    Args:
        path: the heartbeat file, which may not exist yet.
        deadline_s: seconds after which a silent process counts as hanging.

    Returns:
        The silence; None if the process makes progress, waits, or has not begun.
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
        path: the heartbeat file of the process.
        pid: id of the process; a stopped process is continued, so that it can write.

    Returns:
        Everything written within two seconds; empty if the process could not write, for example because it waits for a
        file system inside the kernel.
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

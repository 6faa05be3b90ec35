"""Waits for the end of a verifier's process or of the trainer, and then ends all that the verifier has started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from megacov.rewards.frames import pack

_LOOK_S = 1.0
_END_S = 5.0
_POLL_S = 0.002


def guard(child: int, connection: socket.socket, *, trainer: int, ignored: Iterable[signal.Signals]) -> None:
    """Wait, then end all processes below this one; must be called in the main thread of a process without other use.

    The trainer asks for the end by a byte on standard input, or by closing it.

    Args:
        child: id of the verifier's process, a child of this one and the leader of a session.
        connection: socket to the trainer, which learns how the child ended.
        trainer: id of this process's parent.
        ignored: signals that must not end this process.
    """
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    status = None
    while status is None and os.getppid() == trainer:
        status = _reap(child)
        if status is None:
            ready, _, _ = select.select([sys.stdin.fileno(), reading], [], [], _LOOK_S)
            if sys.stdin.fileno() in ready:
                break
            if ready:
                os.read(reading, 4096)
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    _end_children()
    with contextlib.suppress(OSError):
        if status is not None:
            connection.sendall(pack({"died": _meaning(status)}))
        connection.shutdown(socket.SHUT_RDWR)  # closing would not do: processes that the verifier forked may share it


def _reap(child: int) -> int | None:
    """Reap children that have ended; the status of `child` if it is one of them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, each = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            status = each if pid == child else status
    return status


def _end_children() -> None:
    """Kill and reap until there is no child: orphans of a killed one become children of this process."""
    deadline = time.monotonic() + _END_S
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(_POLL_S)


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path("/proc/thread-self/children").read_text(encoding="ascii").split()]
    except OSError:  # a kernel without this file
        return _children_by_parent()


def _children_by_parent() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended, or this is not Linux
            # "PID (NAME) STATE PARENT ...", and the name may hold anything.
            if int(path.read_bytes().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


def _meaning(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"

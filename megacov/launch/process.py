"""A child that ends with its parent, and a parent that ends its children."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

PARENT_PID_VARIABLE = "MEGACOV_PARENT_PID"
FOLLOWED_PID_VARIABLE = "MEGACOV_FOLLOWED_PID"
"""Process that a launcher of ranks ends with, as those that a sweep starts; ranks have PARENT_PID_VARIABLE."""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_REAP_S = 5.0


def die_with_parent(parent_pid: int, *, poll_s: float = 0.5) -> None:
    """Make this process end when its parent is gone, even if the parent was killed without warning.

    The child calls this. There are two guards, because each has a gap: the kernel's parent-death signal (Linux) ends
    even a child that is stuck in native code, but it watches the *thread* that started the child; a thread of our own
    that polls the parent's id works everywhere, but needs the interpreter to run. Both end the process at once, without
    cleanup, since nobody is left who needs it.

    Start children that call this from a thread that lives as long as its process, normally the main thread.

    Args:
        parent_pid: id of the process that must stay this process's parent. The parent passes it at the start, so that
            the death of the parent before this call is noticed.
        poll_s: seconds between two looks of the polling thread.
    """
    follow_parent(parent_pid)
    threading.Thread(target=_watch_parent, args=(parent_pid, poll_s), name="parent-watch", daemon=True).start()


def follow_parent(parent_pid: int) -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies, without a thread, so that it may still fork.

    Args:
        parent_pid: id of the process that must be this process's parent, from its main thread.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent was gone before the kernel was asked
        _end_now()


def _watch_parent(parent_pid: int, poll_s: float) -> None:
    while os.getppid() == parent_pid:
        time.sleep(poll_s)
    _end_now()


def _end_now() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def without_ignored_hangup(numbers: Iterable[signal.Signals]) -> tuple[signal.Signals, ...]:
    """Leave SIGHUP out if this process ignores it, as under `nohup`: the run then outlives its terminal."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in numbers if not (is_ignored and number == signal.SIGHUP))


@contextmanager
def noted_signals(note: Callable[[int], object]) -> Iterator[None]:
    """Inside, SIGINT, SIGTERM, SIGUSR1 and SIGHUP are noted and do not end this process; then earlier handlers return.

    SIGHUP stays ignored if it is when this begins.

    Args:
        note: called with the number of each signal, between two lines of Python on the main thread.

    Yields:
        Nothing.
    """
    numbers = without_ignored_hangup((signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP))
    before = {number: signal.signal(number, lambda received, _frame: note(received)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_processes(processes: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    """End the given child processes and no others: SIGTERM first, SIGKILL after `grace_s` for those that are left.

    Args:
        processes: children of this process; those that have ended already are only reaped.
        grace_s: seconds between the two signals.
    """
    for process in processes:
        process.terminate()  # does nothing once the process has been reaped
    _wait_all(processes, timeout_s=grace_s)
    for process in processes:
        process.kill()
    _wait_all(processes, timeout_s=_REAP_S)


def _wait_all(processes: Sequence[subprocess.Popen[bytes]], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue

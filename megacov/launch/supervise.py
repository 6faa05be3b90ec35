"""Runs one command and leaves none of its processes behind: `python -m megacov.launch.supervise PARENT_PID FOLDER`.

A server that starts processes of its own does not end when only its first process is killed. This process stands in
between: it adopts every process that the command starts (Linux), and kills all of them when the command ends, when it
receives SIGTERM, or when its own parent is gone for any reason. FOLDER holds `command.json` and may hold secrets; it is
removed at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from megacov.launch.output import keep_output
from megacov.launch.process import without_ignored_hangup

COMMAND_FILE = "command.json"
POLL_S = 0.1

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_PR_SET_CHILD_SUBREAPER = 36
_KILL_S = 10.0
_TRACKER_S = 1.0
_SHARED_MEMORY = "/dev/shm/"


def main(arguments: Sequence[str]) -> int:
    """Run the command until it ends or has to end.

    Args:
        arguments: id of this process's parent, and the folder.

    Returns:
        Exit code of the command, or 128 plus the signal that ended it.
    """
    parent_pid, folder = int(arguments[0]), Path(arguments[1])
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    for number in without_ignored_hangup((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)):
        signal.signal(number, ask)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        order = json.loads((folder / COMMAND_FILE).read_text(encoding="utf-8"))
        try:
            child = _start(order["command"], os.environ | order["environment"])
        except OSError as error:
            print(f"{order['command'][0]} cannot be started ({error.strerror}).", flush=True)
            return 127
        while child.poll() is None and not asked and os.getppid() == parent_pid:
            time.sleep(POLL_S)
    finally:
        _kill_all()
        shutil.rmtree(folder, ignore_errors=True)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None, use_errno=True)

    def follow_this_process() -> None:
        if sys.platform == "linux":
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    # preexec_fn is safe because this process has no other threads.
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=follow_this_process,
    )


def _kill_all() -> None:
    """Kill all descendants of this process, and those that appear meanwhile, until none is left."""
    this, started = psutil.Process(), time.monotonic()
    shared: set[str] = set()
    while left := this.children(recursive=True):
        waited_s = time.monotonic() - started
        if waited_s > _KILL_S:
            break
        # Python's resource tracker removes the semaphores of killed processes, and then ends by itself.
        doomed = [process for process in left if waited_s > _TRACKER_S or not _is_tracker(process)]
        for process in doomed:
            shared |= _shared_memory_of(process)
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=POLL_S)
    for name in shared:
        Path(name).unlink(missing_ok=True)


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _shared_memory_of(process: psutil.Process) -> set[str]:
    """Shared-memory files that SGLang has mapped and cannot remove once it is killed."""
    try:
        lines = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # it has ended, or this is no Linux
        return set()
    names = {line.partition(_SHARED_MEMORY)[2] for line in lines if _SHARED_MEMORY in line}
    return {_SHARED_MEMORY + name for name in names if name.startswith("sglang") and "/" not in name}


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value)


if __name__ == "__main__":
    keep_output()
    sys.exit(main(sys.argv[1:]))

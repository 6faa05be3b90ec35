"""A `python -m MODULE ...` that is forked from a process with all imports done, instead of being started anew.

Importing torch, Megatron and transformers costs a rank or a server four CPU seconds, and tests start about a hundred of
them. A forked process has an id, a session, signal handlers, an environment, files and an exit code of its own, like a
started one. docs/testing.md lists the differences; `name_of` tells a rank from a server.
`tests.support.forked_program` is the code that runs inside a forked process.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NoReturn

import psutil

from tests.support.forked_program import Program, run_program

ROOT = Path(__file__).parents[2]
PRELOAD = "tests.support.preload"

context: ForkServerContext = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([PRELOAD])


def start_fork_server() -> None:
    """Start the fork server, unless it runs. It finds the modules to import by its folder, which a test may change."""
    with contextlib.chdir(ROOT):
        multiprocessing.forkserver.ensure_running()


def fork_server() -> psutil.Process:
    """The running fork server."""
    return psutil.Process(multiprocessing.forkserver._forkserver._forkserver_pid)


class ForkedCommand:
    """A running command, with those parts of `subprocess.Popen` that tests use."""

    def __init__(self, argv: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path) -> None:
        """Fork it from the fork server; standard output and error go to the log, standard input is empty."""
        start_fork_server()
        place = (tuple(argv), str(cwd), dict(environment), str(log))
        self._process = context.Process(target=_become_command, args=place)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process itself, if it runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, if it runs."""
        self.send_signal(signal.SIGKILL)


def name_of(process: psutil.Process) -> str:
    """The kind of a process: "serve" for a server, "rank 1" for a rank, or another word."""
    name = process.name()
    if name.startswith("python"):
        rank = process.environ().get("RANK")
        return "serve" if "serve" in process.cmdline() else f"rank {rank}" if rank else name
    return name


def cpu_seconds() -> float:
    """CPU seconds of the fork server and of its children that have ended."""
    pid = multiprocessing.forkserver._forkserver._forkserver_pid
    if pid is None:
        return 0.0
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def _become_command(argv: tuple[str, ...], cwd: str, environment: dict[str, str], log: str) -> NoReturn:
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, sys.stderr.fileno())
    # The fork server keeps silent if this import fails; here it fails again, and the log shows why.
    importlib.import_module(PRELOAD)
    run_program(Program(argv, cwd, environment, (nothing, output, output)))

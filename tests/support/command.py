"""The `megacov` command as a user runs it: a process, its output, and everything it started.

Commands are forked from a process that has all imports done (see `tests.support.forked`); `real=True` starts one as a
user's shell does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.forked import ForkedCommand, name_of
from tests.support.forked_program import can_fork

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240

Command = subprocess.Popen[bytes] | ForkedCommand


@dataclass(frozen=True)
class Ended:
    """A command that has ended. `left` are processes it started that outlived it by more than a grace of seconds."""

    code: int
    output: str
    left: list[str]


@contextmanager
def started(
    *arguments: str, log: Path, module: tuple[str, ...] = ("-m", "megacov"), real: bool = False
) -> Iterator[Command]:
    """A running `megacov`, or a module that takes its arguments; ended with all it started when the context is left."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    argv = (*module, *arguments)
    log.write_bytes(b"")
    if can_fork(argv) and not real:
        process: Command = ForkedCommand(argv, cwd=ROOT, environment=environment, log=log)
    else:
        process = _start(argv, environment, log)
    try:
        yield process
    finally:
        for child in descendants(process.pid):
            child.kill()
        process.kill()
        process.wait()


def _start(argv: tuple[str, ...], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *argv],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def descendants(pid: int) -> list[psutil.Process]:
    """Every process below one, itself left out."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def still_there(processes: list[psutil.Process], *, grace_s: float = 10.0) -> list[str]:
    """Names and ids of those that have not ended after a grace."""
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    return [f"{name_of(each)} ({each.pid})" for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def wait_for_line(log: Path, words: str, process: Command) -> None:
    """Until the output holds the words; its file may come later."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        has_ended = process.poll() is not None  # before the output is read: its last lines may have the words
        text = log.read_text() if log.exists() else ""
        if words in text:
            return
        assert not has_ended, f"ended with {process.returncode}:\n{text}"
        assert time.monotonic() < deadline, f"no {words!r} in time:\n{text}"
        time.sleep(0.1)


def run(
    *arguments: str,
    log: Path,
    module: tuple[str, ...] = ("-m", "megacov"),
    deadline_s: float = DEADLINE_S,
    real: bool = False,
) -> Ended:
    """Run to the end, and look for what was left behind."""
    seen: dict[int, psutil.Process] = {}
    with started(*arguments, log=log, module=module, real=real) as process:
        deadline = time.monotonic() + deadline_s
        while process.poll() is None:
            assert time.monotonic() < deadline, f"did not end in time:\n{log.read_text()}"
            seen |= {child.pid: child for child in descendants(process.pid)}
            time.sleep(0.1)
        return Ended(process.returncode, log.read_text(), still_there(list(seen.values())))

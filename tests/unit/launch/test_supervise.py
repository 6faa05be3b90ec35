"""The supervisor leaves no process of the command behind, whichever process ends and however it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megacov.launch.supervise import COMMAND_FILE

ROOT = Path(__file__).parents[3]
# Starts a process that leaves its session and its parent, as daemons do, ignores SIGTERM, and waits.
FAMILY = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
folder = pathlib.Path(sys.argv[1])
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.run([sys.executable, "-c", "import subprocess, sys; "
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True); "
    "open(sys.argv[2], 'w').write(str(child.pid))", code, str(folder / "daemon")])
(folder / "first").write_text(os.environ["GREETING"] + " " + str(os.getpid()))
time.sleep(float(sys.argv[2]))
sys.exit(3)
"""
PARENT = """
import subprocess, sys, os, time
child = subprocess.Popen([sys.executable, "-m", "megacov.launch.supervise", str(os.getpid()), sys.argv[1]])
print(child.pid, flush=True)
time.sleep(600)
"""


def wait_until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class Family:
    """A supervisor whose parent is not this process."""

    def __init__(self, tmp_path: Path, seconds: float) -> None:
        self.told, self.spec = tmp_path, tmp_path / "spec"
        self.spec.mkdir()
        command = [sys.executable, "-c", FAMILY, str(tmp_path), str(seconds)]
        (self.spec / COMMAND_FILE).write_text(json.dumps({"command": command, "environment": {"GREETING": "hello"}}))
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(self.spec)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self.parent.stdout is not None
        with self.parent.stdout as output:
            self.supervisor = int(output.readline())

    def pids(self) -> list[int]:
        """Ids of the supervisor, of the command, and of the process that the command started."""
        wait_until(lambda: (self.told / "first").exists() and (self.told / "first").read_text() != "")
        greeting, first = (self.told / "first").read_text().split()
        assert greeting == "hello"
        return [self.supervisor, int(first), int((self.told / "daemon").read_text())]


@pytest.mark.parametrize("ends", ["supervisor is asked", "supervisor is killed", "parent is killed"])
def test_nothing_is_left_whoever_ends(tmp_path, ends):
    family = Family(tmp_path, 600.0)
    try:
        pids = family.pids()
        if ends == "parent is killed":
            family.parent.kill()
        else:
            os.kill(family.supervisor, signal.SIGTERM if ends == "supervisor is asked" else signal.SIGKILL)
        # A supervisor that is killed can only end the process that it started itself.
        left = pids[:2] if ends == "supervisor is killed" else pids
        wait_until(lambda: all(map(is_gone, left)))
        if ends == "supervisor is killed":
            os.kill(pids[2], signal.SIGKILL)
        else:
            assert not family.spec.exists()
    finally:
        family.parent.kill()
        family.parent.wait()


def test_what_a_command_leaves_ends_with_it_and_its_exit_code_is_passed_on(tmp_path):
    command = [sys.executable, "-c", FAMILY, str(tmp_path), "0"]
    spec = tmp_path / "spec"
    spec.mkdir()
    (spec / COMMAND_FILE).write_text(json.dumps({"command": command, "environment": {"GREETING": "hello"}}))
    ended = subprocess.run(
        [sys.executable, "-m", "megacov.launch.supervise", str(os.getpid()), str(spec)],
        cwd=ROOT,
        timeout=60.0,
        check=False,
    )
    assert ended.returncode == 3
    assert is_gone(int((tmp_path / "daemon").read_text()))
    assert not spec.exists()


def test_a_command_that_is_not_there_is_named(tmp_path):
    spec = tmp_path / "spec"
    spec.mkdir()
    (spec / COMMAND_FILE).write_text(json.dumps({"command": ["no-such-command"], "environment": {}}))
    ended = subprocess.run(
        [sys.executable, "-m", "megacov.launch.supervise", str(os.getpid()), str(spec)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    assert ended.returncode == 127
    assert ended.stdout == "no-such-command cannot be started (No such file or directory).\n"

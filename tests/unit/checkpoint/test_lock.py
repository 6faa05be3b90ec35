"""One process holds a run at a time, and nothing that it leaves behind blocks the next one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megacov.checkpoint import RunLock, find_holder
from megacov.errors import DataError

ROOT = Path(__file__).parents[3]
_HOLD = """
import sys
from pathlib import Path
from megacov.checkpoint import RunLock, find_holder
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert process.stdin and process.stdout
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_second_process_is_told_who_has_it(tmp_path):
    with holder(tmp_path, SLURM_JOB_ID="4711") as process:
        with pytest.raises(DataError) as raised, RunLock(tmp_path):
            pass
        started = json.loads((tmp_path / "run.lock").read_text())["started"]
        assert str(raised.value) == (
            f"{tmp_path} is in use by process {process.pid} on {os.uname().nodename}, SLURM job 4711, since {started}: "
            "wait for it, stop it, or choose another run.directory."
        )


def test_the_lock_goes_with_its_process(tmp_path):
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "run.lock").read_text(), "the file of a dead process stays"
        with RunLock(tmp_path):
            assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_it_can_be_taken_again_and_again(tmp_path):
    for _ in range(3):
        with RunLock(tmp_path / "deep" / "run"):
            held = json.loads((tmp_path / "deep" / "run" / "run.lock").read_text())
            assert held["pid"] == os.getpid()


def test_it_moves_with_the_folder(tmp_path):
    with holder(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(DataError, match=r"moved is in use by process"), RunLock(tmp_path / "moved"):
            pass
        with RunLock(tmp_path / "run"):
            pass


def test_a_process_started_meanwhile_does_not_keep_it(tmp_path):
    with RunLock(tmp_path):
        server = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        with RunLock(tmp_path):
            assert server.poll() is None
    finally:
        server.communicate()


_FORK = """
import os, sys, time
from pathlib import Path
from megacov.checkpoint import RunLock, find_holder
read, write = os.pipe()
with RunLock(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
with RunLock(Path(sys.argv[1])):
    print("taken again")
os.close(write)
os.waitpid(child, 0)
"""


def test_a_fork_does_not_keep_it(tmp_path):
    command = [sys.executable, "-c", _FORK, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert (result.stdout, result.stderr) == ("taken again\n", "")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path, text):
    with holder(tmp_path):
        (tmp_path / "run.lock").write_text(text)
        with pytest.raises(DataError, match="is in use by another process:"), RunLock(tmp_path):
            pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys, code):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunLock(tmp_path), RunLock(tmp_path):
        pass
    assert capsys.readouterr().out.count(f"cannot be locked ({os.strerror(code)})") == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/run/run.lock cannot be written: Not a directory\."):
        RunLock(tmp_path / "file" / "run").__enter__()


def test_one_can_look_who_has_a_run_and_who_had_it(tmp_path):
    assert find_holder(tmp_path) is None
    with holder(tmp_path, SLURM_JOB_ID="4711") as process:
        seen = find_holder(tmp_path)
        assert seen is not None and (seen.is_held, seen.slurm_job) == (True, "4711")
        assert seen.description.startswith(f"process {process.pid} on ")
        assert seen.since == (tmp_path / "run.lock").stat().st_mtime
    after = find_holder(tmp_path)
    assert after is not None and (after.is_held, after.description) == (False, seen.description)
    (tmp_path / "run.lock").write_text("half")
    damaged = find_holder(tmp_path)
    assert damaged is not None and (damaged.description, damaged.slurm_job) == ("another process", None)


def test_looks_keep_nobody_out(tmp_path):
    with RunLock(tmp_path):
        pass
    descriptor = os.open(tmp_path / "run.lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    looker = threading.Timer(0.1, os.close, (descriptor,))
    looker.start()
    start = time.monotonic()
    with RunLock(tmp_path):
        assert time.monotonic() - start > 0.05
    looker.join()


def test_the_locked_folder_is_found_under_its_new_name(tmp_path):
    folder, renamed = tmp_path / "run", tmp_path / "renamed"
    lock = RunLock(folder)
    assert lock.find_folder() is None
    with lock:
        assert lock.find_folder() == folder
        folder.rename(renamed)
        assert lock.find_folder() == renamed
        with RunLock(folder):  # another run takes the old name
            assert lock.find_folder() == renamed
        (renamed / "run.lock").unlink()
        assert lock.find_folder() is None

"""Local ranks: their environment, how they end together, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pytest

from megacov.launch.local_ranks import run_local_ranks
from tests.support.processes import is_running, read_pids, wait_until

ROOT = Path(__file__).parents[3]


def rank_command(code: str) -> list[str]:
    """A rank that ends with its parent and runs the code, which has the variable `rank`."""
    head = (
        "import os, pathlib, signal, sys, time\n"
        "from megacov.launch.process import die_with_parent\n"
        "die_with_parent(int(os.environ['MEGACOV_PARENT_PID']))\n"
        "rank = int(os.environ['RANK'])\n"
    )
    return [sys.executable, "-c", head + code]


def start_launcher(
    command: list[str], *, grace_s: float, output: IO[bytes] | None = None, before: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """A separate process that runs two local ranks, so that it can be signalled and killed."""
    code = (
        "import sys\n"
        "from megacov.launch.local_ranks import run_local_ranks\n"
        f"sys.exit(run_local_ranks(sys.argv[1:], num_ranks=2, grace_s={grace_s}))"
    )
    command = [*before, sys.executable, "-c", code, *command]
    return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)


def test_every_rank_learns_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OMP_NUM_THREADS")
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "MEGACOV_STORE", "MEGACOV_PARENT_PID")
    code = f"pathlib.Path({str(tmp_path)!r}, str(rank)).write_text(','.join(os.environ[n] for n in {names}))"
    assert run_local_ranks(rank_command(code), num_ranks=3) == 0
    told = [Path(tmp_path, str(rank)).read_text().split(",") for rank in range(3)]
    assert [values[:4] for values in told] == [[str(rank), str(rank), "3", "1"] for rank in range(3)]
    assert len({values[4] for values in told}) == 1
    assert not Path(told[0][4]).parent.exists()
    assert {values[5] for values in told} == {str(os.getpid())}


def test_threads_that_the_user_set_stay(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run_local_ranks(rank_command("sys.exit(int(os.environ['OMP_NUM_THREADS']))"), num_ranks=1) == 3


@pytest.mark.parametrize(
    ("ending", "exit_code"),
    [("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGSEGV)", 128 + signal.SIGSEGV)],
)
def test_the_first_failure_stops_the_others(tmp_path, monkeypatch, ending, exit_code):
    monkeypatch.chdir(ROOT)
    code = f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\nif rank == 1: {ending}\ntime.sleep(600)"
    started = time.monotonic()
    assert run_local_ranks(rank_command(code), num_ranks=2, grace_s=0.5) == exit_code
    assert time.monotonic() - started < 30.0
    assert not any(is_running(pid) for pid in read_pids(tmp_path, 1))


def test_ranks_that_fail_for_the_same_reason_may_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    code = f"time.sleep(0.3 * rank)\npathlib.Path({str(tmp_path)!r}, str(rank)).touch()\nsys.exit(2 + rank)"
    assert run_local_ranks(rank_command(code), num_ranks=3) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_a_command_that_does_not_exist_leaves_nothing(tmp_path):
    before = dict.fromkeys((signal.SIGINT, signal.SIGTERM))
    before = {number: signal.getsignal(number) for number in before}
    with pytest.raises(FileNotFoundError):
        run_local_ranks([str(tmp_path / "nothing")], num_ranks=2)
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_passed_on_once(tmp_path, number, exit_code):
    pids, ends = tmp_path / "pids", tmp_path / "ends"
    pids.mkdir(), ends.mkdir()
    code = (
        "count = 0\n"
        "def note(*_):\n"
        "    global count\n"
        "    count += 1\n"
        f"signal.signal({int(number)}, note)\n"
        f"pathlib.Path({str(pids)!r}, str(os.getpid())).touch()\n"
        "while not count: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        f"pathlib.Path({str(ends)!r}, f'{{rank}}-{{count}}').touch()\n"
        "sys.exit(1)\n"
    )
    launcher = start_launcher(rank_command(code), grace_s=20.0)
    read_pids(pids, 2)
    launcher.send_signal(number)
    assert launcher.wait(timeout=30.0) == exit_code
    assert sorted(path.name for path in ends.iterdir()) == ["0-1", "1-1"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_ranks_that_end_well_have_ended_well_whatever_was_asked(tmp_path, number):
    code = (
        "asked = []\n"
        f"signal.signal({int(number)}, lambda *_: asked.append(1))\n"
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
        "while not asked: time.sleep(0.01)\n"
    )
    launcher = start_launcher(rank_command(code), grace_s=20.0)
    read_pids(tmp_path, 2)
    launcher.send_signal(number)
    assert launcher.wait(timeout=30.0) == 0


def test_a_second_ctrl_c_kills_ranks_that_were_not_asked_to_save(tmp_path):
    code = (
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
        "while True: time.sleep(0.1)\n"
    )
    launcher = start_launcher(rank_command(code), grace_s=600.0)
    pids = read_pids(tmp_path, 2)
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=30.0) == 130
    assert not any(is_running(pid) for pid in pids)


# Notes each signal and saves until a file appears.
SAVING = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
names = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, lambda number, _: names.append(signal.Signals(number).name))
pathlib.Path(FOLDER, str(os.getpid())).touch()
while not pathlib.Path(FOLDER, 'saved').exists(): time.sleep(0.01)
os.write(1, f'rank {rank} got {names}\\n'.encode())
sys.exit(75)
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_repeated_signal_does_not_end_a_save_but_says_how_long_is_left(tmp_path, first):
    output = tmp_path / "output"
    folder = tmp_path / "pids"
    folder.mkdir()
    with output.open("wb") as file:
        launcher = start_launcher(rank_command(f"FOLDER = {str(folder)!r}{SAVING}"), grace_s=100.0, output=file)
    read_pids(folder, 2)
    launcher.send_signal(first)
    for count, number in enumerate((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT), start=1):
        time.sleep(0.2)
        launcher.send_signal(number)
        wait_until(lambda count=count: output.read_text().count("s left to save") == count)
    assert launcher.poll() is None
    shown = output.read_text()
    assert "the ranks have 100 s left" in shown or "the ranks have 99 s left" in shown
    assert shown.splitlines()[-1].endswith("one more Ctrl-C ends them unsaved.")
    (folder / "saved").touch()
    assert launcher.wait(timeout=30.0) == 75
    assert sorted(output.read_text().splitlines()[-2:]) == [f"rank {rank} got {[first.name]}" for rank in range(2)]


def test_the_second_ctrl_c_ends_a_save(tmp_path):
    launcher = start_launcher(rank_command(f"FOLDER = {str(tmp_path)!r}{SAVING}"), grace_s=600.0)
    pids = read_pids(tmp_path, 2)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
        assert launcher.poll() is None
        launcher.send_signal(number)
        time.sleep(0.3)
    assert launcher.wait(timeout=30.0) == 143
    assert not any(is_running(pid) for pid in pids)


def test_nohup_still_outlives_its_terminal(tmp_path):
    launcher = start_launcher(rank_command(f"FOLDER = {str(tmp_path)!r}{SAVING}"), grace_s=100.0, before=["nohup"])
    read_pids(tmp_path, 2)
    launcher.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    (tmp_path / "saved").touch()
    assert launcher.wait(timeout=30.0) == 75  # of the ranks themselves: they were asked nothing


def test_ranks_that_ignore_a_signal_are_killed_after_the_grace(tmp_path):
    code = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
        "while True: time.sleep(0.1)\n"
    )
    launcher = start_launcher(rank_command(code), grace_s=0.3)
    pids = read_pids(tmp_path, 2)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=30.0) == 143
    assert not any(is_running(pid) for pid in pids)


def test_no_rank_outlives_a_killed_launcher(tmp_path):
    # The ranks ignore every signal that can be ignored, like a rank that is stuck in native code.
    code = (
        "[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]\n"
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
        "while True: time.sleep(0.1)\n"
    )
    launcher = start_launcher(rank_command(code), grace_s=600.0)
    pids = read_pids(tmp_path, 2)
    launcher.kill()
    launcher.wait(timeout=30.0)
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    assert [pid for pid in pids if is_running(pid)] == []

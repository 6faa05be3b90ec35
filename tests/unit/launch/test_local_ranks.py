"""Local ranks: their environment, how they end together, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megacov.errors import ConfigError
from megacov.launch.local_ranks import RankEnvironment, rank_from_environment, run_local_ranks
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


def start_launcher(command: list[str], *, grace_s: float) -> subprocess.Popen[bytes]:
    """A separate process that runs two local ranks, so that it can be signalled and killed."""
    code = (
        "import sys\n"
        "from megacov.launch.local_ranks import run_local_ranks\n"
        f"sys.exit(run_local_ranks(sys.argv[1:], num_ranks=2, grace_s={grace_s}))"
    )
    return subprocess.Popen([sys.executable, "-c", code, *command], cwd=ROOT)


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


def test_a_second_signal_kills(tmp_path):
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


OWN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MEGACOV_STORE": "/tmp/store"}
TORCHRUN = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (OWN, (1, 1, 4, "file:///tmp/store")),
        (TORCHRUN, (9, 1, 16, "env://")),
        (SRUN, (5, 1, 8, "env://")),
        ({**SRUN, **TORCHRUN}, (9, 1, 16, "env://")),
        ({**SRUN, **TORCHRUN, **OWN}, (1, 1, 4, "file:///tmp/store")),
        ({**SRUN, "SLURM_NTASKS": "1"}, None),
        ({name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}, None),
        # The shell that salloc opens is an interactive step and not a rank.
        ({**SRUN, "SLURM_STEP_ID": str(0xFFFFFFFA)}, None),
    ],
)
def test_the_rank_is_read_from_the_environment(environment, expected):
    rank = rank_from_environment(environment)
    assert rank == (None if expected is None else RankEnvironment(*expected))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({name: value for name, value in SRUN.items() if name != "MASTER_PORT"}, "8 ranks without MASTER_PORT"),
        ({**TORCHRUN, "RANK": "one"}, "RANK='one'"),
        ({name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"}, "LOCAL_RANK=''"),
        ({**OWN, "RANK": "4"}, "RANK=4 and WORLD_SIZE=4"),
    ],
)
def test_a_broken_environment_is_named(environment, message):
    with pytest.raises(ConfigError, match=message):
        rank_from_environment(environment)

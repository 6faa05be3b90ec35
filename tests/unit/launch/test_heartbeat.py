"""A rank that hangs is found, prints its stacks, and is killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from megacov.errors import RankError
from megacov.launch.heartbeat import silence_of
from megacov.launch.local_ranks import run_local_ranks

ROOT = Path(__file__).parents[3]
HEAD = """
import os, signal, sys, time
from megacov.launch.heartbeat import beat, computing, start_heartbeat
from megacov.launch.process import die_with_parent
die_with_parent(int(os.environ["MEGACOV_PARENT_PID"]))
start_heartbeat()
rank = int(os.environ["RANK"])
def the_innermost_loop(seconds):
    time.sleep(seconds)
"""


def run(code: str, *, hang_s: float) -> int:
    """Two ranks that run the code."""
    return run_local_ranks([sys.executable, "-c", HEAD + code], num_ranks=2, hang_s=hang_s)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("stands_still", "said"),
    [
        ("with computing('update'): the_innermost_loop(600)", "megacov: rank 1 has been in update for "),
        # The whole process is stopped, so its heartbeat thread is silent too.
        ("os.kill(os.getpid(), signal.SIGSTOP); the_innermost_loop(600)", "megacov: rank 1 has not run for "),
    ],
)
def test_a_rank_that_stands_still_is_named_with_its_stack(
    stands_still: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code = f"""
if rank == 1:
    {stands_still}
else:
    time.sleep(600)
"""
    started = time.monotonic()
    assert run(code, hang_s=2.0) == RankError.exit_code
    assert time.monotonic() - started < 60
    told = capfd.readouterr().err
    assert said in told and told.count("counts as hanging") == 1
    assert "in <module>" in told


def test_the_one_that_was_silent_first_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    code = """
time.sleep(1 - rank)
with computing("update"):
    the_innermost_loop(600)
"""
    assert run(code, hang_s=3.0) == RankError.exit_code
    told = capfd.readouterr().err
    assert "rank 1 has been in update" in told and "in the_innermost_loop" in told


def test_ranks_that_move_or_wait_are_left_alone() -> None:
    code = """
with computing("log_probs"):
    for _ in range(12):
        time.sleep(0.25)
        beat()
time.sleep(2.5)  # outside of a phase, as while it waits for servers
"""
    assert run(code, hang_s=2.0) == 0


def test_a_rank_without_a_heartbeat_is_not_judged(tmp_path: Path) -> None:
    assert silence_of(tmp_path / "none", deadline_s=0.0) is None
    (tmp_path / "begun").touch()
    assert silence_of(tmp_path / "begun", deadline_s=0.0) is None
    command = [sys.executable, "-c", "import time; time.sleep(1.5)"]
    assert run_local_ranks(command, num_ranks=1, hang_s=0.2) == 0

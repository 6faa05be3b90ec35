"""Ranks of one node among several: their place, and the exit code by which the job is judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megacov.launch.rank_environment import rank_from_environment

ROOT = Path(__file__).parents[3]


def run_node(folder: Path, code: str, *, index: int = 1, nodes: int = 3, num_ranks: int = 2) -> int:
    """The task that srun starts on a node, with ranks that run the code."""
    head = "import os, pathlib, sys\nrank = int(os.environ['RANK'])\n"
    place = {"SLURM_PROCID": str(index), "SLURM_NTASKS": str(nodes), "SLURM_STEP_ID": "0"}
    environment = os.environ | place | {"MASTER_ADDR": "node0", "MASTER_PORT": "12345"}
    arguments = [str(num_ranks), "20", "60", str(folder), sys.executable, "-c", head + code]
    command = [sys.executable, "-m", "megacov.launch.node_ranks", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=60, check=False).returncode


def test_ranks_are_counted_over_all_nodes(tmp_path: Path) -> None:
    code = f"import json; pathlib.Path({str(tmp_path)!r}, str(rank)).write_text(json.dumps(dict(os.environ)))"
    assert run_node(tmp_path, code) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    for rank in (2, 3):
        place = rank_from_environment(json.loads((tmp_path / str(rank)).read_text()))
        assert place == (rank, rank - 2, 6, "env://")


@pytest.mark.parametrize(
    ("ending", "told_srun", "files"),
    [
        ("sys.exit(0)", 0, {}),
        ("sys.exit(7)", 7, {"failed": "7\n"}),
        ("sys.exit(7 if rank == 3 else 0)", 7, {"failed": "7\n"}),
        ("sys.exit(75)", 0, {"left": "75\n"}),
    ],
)
def test_the_code_is_kept(tmp_path: Path, ending: str, told_srun: int, files: dict[str, str]) -> None:
    assert run_node(tmp_path, ending) == told_srun
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize(("codes", "believed"), [((7, 8), 7), ((8, 7), 7), ((7, 3), 7), ((8, 143), 8), ((143, 8), 143)])
def test_the_cause_is_believed_whoever_says_it_first(tmp_path: Path, codes: tuple[int, int], believed: int) -> None:
    for index, code in enumerate(codes):
        run_node(tmp_path, f"sys.exit({code})", index=index, num_ranks=1)
    assert (tmp_path / "failed").read_text() == f"{believed}\n"


def test_a_failure_is_told_before_the_other_ranks_have_ended(tmp_path: Path) -> None:
    code = f"""
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 2: sys.exit(7)
while not pathlib.Path({str(tmp_path / "failed")!r}).exists(): time.sleep(0.05)
pathlib.Path({str(tmp_path / "seen")!r}).touch()
"""
    assert run_node(tmp_path, code) == 7
    assert (tmp_path / "seen").exists()


def test_a_request_to_leave_may_be_repeated_until_the_end(tmp_path: Path) -> None:
    code = """
import signal, time
asked = []
signal.signal(signal.SIGUSR1, lambda number, frame: asked.append(number))
os.kill(os.getppid(), signal.SIGUSR1)
while not asked: time.sleep(0.02)
sys.exit(75)
"""
    command = [sys.executable, "-c", "import os, sys\n" + code]
    environment = os.environ | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}
    environment |= {"MASTER_ADDR": "node0", "MASTER_PORT": "12345"}
    node = subprocess.Popen(
        [sys.executable, "-m", "megacov.launch.node_ranks", "1", "20", "60", str(tmp_path), *command],
        cwd=ROOT,
        env=environment,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "left").exists():
        assert time.monotonic() < deadline
    while node.poll() is None:  # it is about to end, and may have ended
        node.send_signal(signal.SIGUSR1)
    assert node.wait(timeout=30) == 0
    assert (tmp_path / "asked").read_text() == f"{signal.SIGUSR1:d}\n"

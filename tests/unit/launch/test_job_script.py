"""Decisions of a job's script: what may pass, and when to stop trying. Its functions are called in bash."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from megacov.launch.sbatch import render
from tests.unit.launch.test_sbatch import SHAPES, make_job


def call(run: Path, commands: str) -> str:
    """Define the functions of a job whose run is in a folder, and run commands; returns what they print."""
    definitions = render(make_job(SHAPES["split"])).rpartition('main "$@"')[0]
    script = f"{definitions}\nrun={run} SLURM_JOB_ID=7 all_hosts=(n0 n1 n2)\n{commands}"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert not ended.stderr, ended.stderr
    return ended.stdout


def save(run: Path, step: int) -> None:
    """A checkpoint, as far as the script looks."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").touch()


def test_the_newest_step_is_a_number(tmp_path: Path) -> None:
    assert call(tmp_path, "newest_step") == "0\n"
    for step in (8, 10, 9):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step_00000099").mkdir()  # not whole
    assert call(tmp_path, "newest_step") == "10\n"


@pytest.mark.parametrize(
    ("code", "without_progress", "with_progress"),
    [
        *((code, True, True) for code in (75, 4, 5, 8, 11, 137, 138, 143, 233)),
        *((code, False, True) for code in (1, 9)),
        *((code, False, False) for code in (0, 2, 3, 6, 7, 10, 127, 130)),
    ],
)
def test_what_may_pass(code: int, without_progress: bool, with_progress: bool, tmp_path: Path) -> None:
    save(tmp_path, 4)
    for begun_at, passes in ((4, without_progress), (2, with_progress)):
        told = call(tmp_path, f"begun_at={begun_at}; if may_pass {code}; then echo yes; else echo no; fi")
        assert told == ("yes\n" if passes else "no\n")


def test_starts_are_counted_until_there_is_progress(tmp_path: Path) -> None:
    run, count = tmp_path / "run", "count_starts; echo $starts"
    counted = [call(run, count) for _ in range(3)]
    save(run, 1)
    counted += [call(run, count) for _ in range(2)]
    counted.append(call(run, "SLURM_JOB_ID=8; " + count))
    assert "".join(counted).split() == ["0", "1", "2", "0", "1", "0"]


@pytest.mark.parametrize(
    ("bad", "excluded"), [(["n1"], "n1"), (["n0", "n2"], "n0,n2"), (["n0", "n1", "n2"], ""), (["n0"], "n0")]
)
def test_all_nodes_are_never_kept_out(bad: list[str], excluded: str, tmp_path: Path) -> None:
    (tmp_path / "preflight").mkdir(parents=True)
    (tmp_path / "preflight" / "bad_nodes").write_text("".join(f"{node}\n" for node in bad))
    assert call(tmp_path, "logs=$run; nodes_to_exclude").strip() == excluded

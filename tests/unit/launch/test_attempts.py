"""Files that jobs have left behind: read in order, without those that are out of date."""

from __future__ import annotations

import os
from pathlib import Path

from megacov.launch.attempts import read_attempts


def note(path: Path, text: str, *, at: float) -> None:
    """A file with that time of change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (at, at))


def test_a_run_without_jobs_has_none(tmp_path):
    attempts = read_attempts(tmp_path, since=0.0)
    assert attempts == type(attempts)((), None, None, None)


def test_attempts_sort_by_number(tmp_path):
    logs = tmp_path / "logs"
    for name in ("slurm_99_0", "slurm_100_2", "slurm_100_10"):
        note(logs / name / "environment.txt", "", at=50)
    note(logs / "slurm_100_2" / "failed", "4\n", at=60)
    attempts = read_attempts(tmp_path, since=0.0)
    assert [path.name for path in attempts.folders] == ["slurm_99_0", "slurm_100_2", "slurm_100_10"]
    assert (attempts.began, attempts.ended, attempts.last_code) == (50, None, None)


def test_the_end_of_the_last_attempt_counts_unless_the_run_went_on(tmp_path):
    last = tmp_path / "logs" / "slurm_7_0"
    note(last / "left", "75\n", at=100)
    assert read_attempts(tmp_path, since=90).last_code == 75
    note(last / "failed", "8\n", at=100)
    note(tmp_path / "logs" / "ended", "2\n", at=100)
    attempts = read_attempts(tmp_path, since=90)
    assert (attempts.last_code, attempts.ended) == (8, 2)
    attempts = read_attempts(tmp_path, since=110)
    assert (attempts.last_code, attempts.ended) == (None, None)


def test_a_note_that_is_being_written_says_nothing(tmp_path):
    note(tmp_path / "logs" / "ended", "", at=100)
    assert read_attempts(tmp_path, since=0.0).ended is None

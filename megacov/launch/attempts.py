"""RUN/logs as the jobs of a run leave it: one folder for each start of a job (an attempt), and how it ended."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megacov.errors import LeaveRequested
from megacov.launch.node_ranks import FAILED, LEFT

_ATTEMPT = re.compile(r"slurm_(\d+)_(\d+)")
# Written once, when an attempt begins.
_FIRST_FILE = "environment.txt"


@dataclass(frozen=True)
class Attempts:
    """The attempts of a run; there are none if no job has run it so far.

    folders: log folders of the attempts, oldest first.
    began: start of the last attempt, in seconds since the epoch; None without attempts.
    ended: exit code with which the run ended for good; None while jobs may continue it.
    last_code: exit code of the last attempt; None if the attempt left none.
    """

    folders: tuple[Path, ...]
    began: float | None
    ended: int | None
    last_code: int | None

    @property
    def newest(self) -> str:
        """Name of the last folder, slurm_JOBID_RESTART; empty without any."""
        return self.folders[-1].name if self.folders else ""


def read_attempts(run: Path, *, since: float) -> Attempts:
    """Look into RUN/logs.

    Args:
        run: folder of the run.
        since: time before which ends do not count, because a later process has continued the run; seconds since the
            epoch.

    Returns:
        The attempts.
    """
    logs = run / "logs"
    numbers = (_ATTEMPT.fullmatch(path.name) for path in logs.glob("slurm_*"))
    found = sorted((int(match[1]), int(match[2]), match[0]) for match in numbers if match)
    folders = tuple(logs / name for _, _, name in found)
    last = folders[-1] if folders else logs / "latest"
    last_code = _code(last / FAILED, since)
    if last_code is None and _code(last / LEFT, since) is not None:
        last_code = LeaveRequested.exit_code
    return Attempts(folders, _changed(last / _FIRST_FILE), _code(logs / "ended", since), last_code)


def _code(path: Path, since: float) -> int | None:
    try:
        changed, text = path.stat().st_mtime, path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return int(text) if changed >= since and re.fullmatch("[0-9]{1,3}", text) else None


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None

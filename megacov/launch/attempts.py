"""What the jobs of a run have left in RUN/logs: a folder for each time that one began, and how it ended."""

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
    """The attempts of a run; without any, it was not a job so far.

    folders: oldest first.
    began: when the last one did, in seconds since the epoch; None without any.
    ended: code with which the run has ended for good; None while jobs may go on with it.
    last_code: with which the last attempt has ended; None if it has not said.
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
        since: ends that are older do not count, as a later process has gone on with the run; seconds since the epoch.

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
    return int(text) if changed >= since and text.isdecimal() else None


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None

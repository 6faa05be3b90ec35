"""RUN/finished.json, which records that a run has come to its end: all steps, their checkpoint and the final push."""

from __future__ import annotations

import json
from pathlib import Path

from megacov.checkpoint.disk import disk_errors
from megacov.files import write_atomically
from megacov.json_text import JsonError, read_json

FINISHED_NAME = "finished.json"


def note_finished(run_folder: Path, *, step: int) -> None:
    """Record the end of a run; raises CheckpointError if the disk refuses it."""
    path = run_folder / FINISHED_NAME
    with disk_errors(path, "written"):
        write_atomically(path, json.dumps({"step": step}) + "\n", is_synced=True)


def read_finished(run_folder: Path) -> int | None:
    """Number of steps with which a run has ended; None if it has not, or if the file is damaged."""
    try:
        step = read_json(run_folder / FINISHED_NAME)["step"]
    except (OSError, JsonError, KeyError, TypeError):
        return None
    return step if type(step) is int and step > 0 else None

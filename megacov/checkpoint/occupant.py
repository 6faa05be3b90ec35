"""Looks at what a new run's folder already holds, and changes nothing; `megacov.trainer.run_folder` acts on it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from megacov.checkpoint.lock import LOCK_NAME
from megacov.config.yaml_text import parse_yaml
from megacov.errors import ConfigError, DataError

Occupant = Literal["nothing", "a start", "a run"]
"""Nothing of value; what a start that failed before its first step has left; a run that has made steps."""

# Written before the configuration: by the lock, and by the job that starts the run.
_BEFORE_A_RUN = {LOCK_NAME, "logs"}
_SMALL_FILES = {"run_id", "ended.json"}
_OF_AN_OWNER = {"owner.json", LOCK_NAME}
# Made empty at the start. Their later content is of value, apart from TensorBoard's logs.
_EMPTY_AT_FIRST = {"samples", "weights", "checkpoints"}
_OF_A_START = _BEFORE_A_RUN | _SMALL_FILES | _EMPTY_AT_FIRST | {"config.yaml", "tensorboard"}


def look_at_run_folder(folder: Path) -> Occupant:
    """Find out what a run's folder holds; raises DataError if it is something else than a run. Changes nothing."""
    try:
        # Written under another name first, by `megacov.files`.
        entries = {entry.name.removeprefix("tmp_") for entry in folder.iterdir()}
    except FileNotFoundError:
        return "nothing"
    except OSError as error:
        raise DataError(f"run.directory {folder} cannot be read: {error.strerror}.") from error
    if entries <= _BEFORE_A_RUN:
        return "nothing"
    if not _is_of_a_run(folder, entries):
        known = sorted(entries - _OF_A_START) or sorted(entries)
        raise DataError(
            f"run.directory is {folder}, which is not empty and holds no run of megacov (it holds {known[0]}): choose "
            "another folder."
        )
    is_full = any(_holds_something(folder / name) for name in entries & _EMPTY_AT_FIRST)
    return "a run" if is_full or entries - _OF_A_START else "a start"


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(entry.name not in _OF_AN_OWNER for entry in folder.iterdir())


def _is_of_a_run(folder: Path, entries: set[str]) -> bool:
    """Whether the configuration in the folder is that of a run; a folder without one may be the rest of a run."""
    if "config.yaml" not in entries:
        return LOCK_NAME in entries and entries <= _OF_A_START
    try:
        path = folder / "config.yaml"
        config = parse_yaml(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, ValueError, ConfigError):
        # A damaged configuration beside the lock of a run is still that of a run.
        return LOCK_NAME in entries
    section = config.get("run") if isinstance(config, dict) else None
    return isinstance(section, dict) and "name" in section

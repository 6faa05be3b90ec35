"""Reads `trainer.json`, a checkpoint's record of the run that wrote it."""

from __future__ import annotations

from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import Any

from megacov.config.messages import show
from megacov.errors import CheckpointError
from megacov.json_text import JsonError, read_json
from megacov.plan.control import ControlState
from megacov.trainer.saving.checkpointing import FORMAT, TRAINER_FILE

_COUNTS = ("step", "update", "skipped_in_a_row", "prompt_position", "adam_steps", "scheduler_steps")
_LARGEST_COUNT = 2**62
_KINDS = {"config": dict, "shape": dict, "layout": dict, "prompts_sha256": str}
_WORDS = {dict: "an object", str: "text"}


def read_about(folder: Path) -> dict[str, Any]:
    """Read the record of a checkpoint.

    Args:
        folder: folder of the checkpoint.

    Returns:
        The record, in which everything that a run continues from is there and of the right type.

    Raises:
        CheckpointError: the file cannot be read, is of another version of megacov, or lacks a part.
    """
    path = folder / TRAINER_FILE
    try:
        about = read_json(path, allows_nan=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    except JsonError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(about, dict):
        raise CheckpointError(f"{path} holds {show(about)} instead of the record of a run.")
    if about.get("format") != FORMAT:
        found = show(about.get("format"))
        raise CheckpointError(f"{folder} has format {found}, and this version of megacov reads {FORMAT}.")
    for name in _COUNTS:
        value = about.get(name)
        if type(value) is not int or not 0 <= value <= _LARGEST_COUNT:
            raise _wrong(path, about, name, "a whole number from 0")
    for name, kind in _KINDS.items():
        if not isinstance(about.get(name), kind):
            raise _wrong(path, about, name, _WORDS[kind])
    if not _is_of_a_controller(about):
        raise _wrong(path, about, "control", "null or the finite numbers value, integral and measured")
    # An export reads this before it reads any weights.
    model = about["config"].get("model")
    if not isinstance(model, dict) or not isinstance(model.get("dtype"), str):
        raise CheckpointError(f"{path}: its config has no model.dtype; continue from another checkpoint.")
    return about


def _is_of_a_controller(about: dict[str, Any]) -> bool:
    """Whether the state of a controller is whole; older checkpoints have none."""
    control = about.get("control")
    if control is None:
        return True
    names = {field.name for field in fields(ControlState)}
    if not isinstance(control, dict) or control.keys() != names or type(about.get("controlled_by")) is not str:
        return False
    numbers = [value for name, value in control.items() if not (name == "measured" and value is None)]
    return all(type(value) in (int, float) and isfinite(value) for value in numbers)


def _wrong(path: Path, about: dict[str, Any], name: str, words: str) -> CheckpointError:
    found = f"{name} is {show(about[name])}, but it must be {words}" if name in about else f"{name} is missing"
    return CheckpointError(f"{path}: {found}; continue from another checkpoint.")

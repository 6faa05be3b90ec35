"""RUN/status.json: the newest logged steps of a run, for `megacov status`. Reading it needs the standard library only.

The file is small and is replaced as a whole, so a reader never meets half of it, whatever the file system.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacov.errors import DataError
from megacov.files import write_atomically
from megacov.json_text import JsonError, parse_json
from megacov.monitor.headline_tags import ENTROPY_TAG, REWARD_TAG

STATUS_NAME = "status.json"
NUM_STEPS = 100
"""Logged steps in the file: more than `megacov status` shows, so that enough are left when a run is resumed."""

_TAGS = (ENTROPY_TAG, REWARD_TAG)
_FORMAT = 1


@dataclass(frozen=True)
class LoggedStep:
    """A step; `time` is when it was logged, in seconds since the epoch, and `values` are by tag."""

    step: int
    time: float
    values: Mapping[str, float]


class StatusFile:
    """Keeps the file up to date. Only rank 0 of a run has one.

    A file that cannot be written does not end the run: it warns, once until a write succeeds again.
    """

    def __init__(self, run_folder: Path, *, name: str, num_steps: int, first_step: int | None = None) -> None:
        """Write the file: without steps, or with those that a resumed run does not repeat.

        Args:
            run_folder: folder that will hold the file.
            name: run.name.
            num_steps: steps that the run will have at its end.
            first_step: step with which a resumed run continues; None for a new run.
        """
        self._path = run_folder / STATUS_NAME
        self._head = {"format": _FORMAT, "name": name, "num_steps": num_steps}
        self._is_failing = False
        known = () if first_step is None else _read_leniently(run_folder)
        self._steps = [step for step in known if first_step is None or step.step < first_step]
        self._write()

    def add_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note that a step was logged now.

        Args:
            step: number of steps that are done.
            metrics: values by tag; only those that `megacov status` shows are kept.
        """
        values = {tag: float(metrics[tag]) for tag in _TAGS if tag in metrics}
        self._steps = [*self._steps, LoggedStep(step, time.time(), values)][-NUM_STEPS:]
        self._write()

    def _write(self) -> None:
        try:
            write_atomically(self._path, _render(self._head, self._steps))
        except OSError as error:
            if not self._is_failing:
                print(
                    f"megacov: warning: {self._path} cannot be written ({error.strerror or error}): the run continues,"
                    " and `megacov status` shows older steps until the file can be written again.",
                    file=sys.stderr,
                    flush=True,
                )
            self._is_failing = True
        else:
            self._is_failing = False


def read_logged_steps(run_folder: Path) -> tuple[LoggedStep, ...] | None:
    """Read the newest logged steps of a run.

    Args:
        run_folder: folder that holds the file.

    Returns:
        The steps, oldest first; None where there is no file.

    Raises:
        DataError: the file is empty, damaged, or from another version of megacov.
        OSError: the file cannot be read.
    """
    path = run_folder / STATUS_NAME
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    if not text.strip():
        raise DataError(f"{path} is empty; the next logged step writes it anew.")
    try:
        return _parse(parse_json(text))
    except (ValueError, TypeError, OverflowError) as error:
        problem = "is no whole JSON" if isinstance(error, JsonError) else f"is malformed: {str(error)[:200]}"
        raise DataError(f"{path} {problem}; the next logged step writes it anew.") from error


def _read_leniently(run_folder: Path) -> tuple[LoggedStep, ...]:
    """The steps, or none: a resumed run writes the file anew in any case."""
    try:
        return read_logged_steps(run_folder) or ()
    except (DataError, OSError):
        return ()


def _render(head: Mapping[str, Any], steps: list[LoggedStep]) -> str:
    logged = [
        {"step": each.step, "time": each.time, "values": {tag: _to_json(value) for tag, value in each.values.items()}}
        for each in steps
    ]
    return json.dumps({**head, "logged": logged}) + "\n"


def _to_json(value: float) -> float | str:
    """JSON has no numbers for NaN and infinities; `float` reads their names."""
    return value if math.isfinite(value) else str(value)


def _parse(content: Any) -> tuple[LoggedStep, ...]:
    """The steps in a JSON value; ValueError or TypeError if it is of another shape."""
    match content:
        case {"format": int(number)} if number != _FORMAT:
            raise ValueError(f"it has format {number}, and this version of megacov reads format {_FORMAT}")
        case {"format": int(), "logged": list(logged)}:
            return tuple(_parse_step(each) for each in logged)
    raise ValueError("it holds no list of logged steps")


def _parse_step(content: Any) -> LoggedStep:
    match content:
        case {"step": int(step), "time": int() | float() as logged_at, "values": dict(values)}:
            return LoggedStep(step, float(logged_at), {tag: float(value) for tag, value in values.items()})
    raise ValueError("an entry of its list is not step, time and values")

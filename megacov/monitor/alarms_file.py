"""RUN/alarms.jsonl: one JSON object for each alarm that was raised, and once more with `cleared` when it was over.

Reading it needs the standard library only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from megacov.files import write_atomically
from megacov.json_text import MAX_JSON_BYTES, JsonError, parse_json
from megacov.monitor.alarm import Alarm

ALARMS_NAME = "alarms.jsonl"


class AlarmsFile:
    """Appends alarms. Only rank 0 of a run has one.

    A file that cannot be written does not end the run: it warns once.
    """

    def __init__(self, run_folder: Path, *, first_step: int | None = None) -> None:
        """Remove what earlier attempts have written about steps that are yet to come.

        Args:
            run_folder: folder that will hold the file.
            first_step: step with which a resumed run continues; None for a new run.
        """
        self._path = run_folder / ALARMS_NAME
        self._has_failed = False
        try:
            lines = _whole_lines(self._path) if first_step is not None else ()
            kept = [line for line in lines if (alarm := _parse(line)) and _written_at(alarm) < (first_step or 0)]
            # Also without a line: a run without this file is one of an older megacov, of which nobody knows alarms.
            write_atomically(self._path, "".join(f"{line}\n" for line in kept))
        except OSError as error:
            self._warn(error)

    def add(self, alarms: Iterable[Alarm]) -> None:
        """Append alarms that were raised or cleared now."""
        lines = [json.dumps(asdict(alarm)) + "\n" for alarm in alarms]
        if not lines:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._has_failed:
            reason = error.strerror or error
            sentence = f"{self._path} cannot be written ({reason}): the run continues, and alarms are in its log only."
            print(f"megacov: warning: {sentence}", file=sys.stderr, flush=True)
        self._has_failed = True


def read_alarms(run_folder: Path) -> tuple[list[Alarm], int]:
    """Read the alarms of a run.

    Args:
        run_folder: folder that holds the file.

    Returns:
        The alarms by step, each once; and the number of damaged lines.

    Raises:
        OSError: the file cannot be read.
    """
    found: dict[tuple[str, int, str], Alarm] = {}
    num_damaged = 0
    for line in _whole_lines(run_folder / ALARMS_NAME):
        alarm = _parse(line)
        if alarm is None:
            num_damaged += 1
        else:
            found[alarm.kind, alarm.step, alarm.seen] = alarm
    return sorted(found.values(), key=lambda alarm: alarm.step), num_damaged


def _written_at(alarm: Alarm) -> int:
    return alarm.step if alarm.cleared is None else alarm.cleared


def _whole_lines(path: Path) -> Iterator[str]:
    """Lines of the file; without the last one while it is being written. One that is too long comes in pieces."""
    try:
        with path.open("rb") as file:
            for line in iter(partial(file.readline, MAX_JSON_BYTES + 1), b""):
                if line.endswith(b"\n") or len(line) > MAX_JSON_BYTES:
                    yield line.decode("utf-8", errors="replace").rstrip("\n")
    except FileNotFoundError:
        return


def _parse(line: str) -> Alarm | None:
    try:
        content: Any = parse_json(line)
    except JsonError:
        return None
    match content:
        case {
            "kind": str(kind),
            "step": int(step),
            "seen": str(seen),
            "meaning": str(meaning),
            "knob": str(knob),
            "cleared": int() | None as cleared,
        }:
            return Alarm(kind, step, seen, meaning, knob, cleared)
    return None

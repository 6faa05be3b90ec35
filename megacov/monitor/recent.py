"""The newest steps that a run has logged, read from the ends of its event files; without numpy."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

# Of a record: its length and a checksum of that before it, and a checksum of it behind.
_HEAD = struct.Struct("<QI")
_TAIL_BYTES = 4


@dataclass(frozen=True)
class LoggedStep:
    """A step; `time` is when it was logged, in seconds since the epoch, and `values` are by tag."""

    step: int
    time: float
    values: Mapping[str, float]


def read_recent(folder: Path, tags: Collection[str], *, count: int) -> tuple[LoggedStep, ...]:
    """Read the newest steps. A step that a resumed run has done again counts as the resumed run has logged it.

    Args:
        folder: RUN/tensorboard, which may be missing.
        tags: scalars that are wanted; steps without any of them do not count.
        count: of steps.

    Returns:
        At most so many, oldest first.

    Raises:
        OSError: a file cannot be read.
    """
    found: dict[int, tuple[float, dict[str, float]]] = {}
    hidden_from = math.inf
    for path in sorted(folder.glob("events.out.tfevents.*"), reverse=True):
        for event in _events_backwards(path.read_bytes()):
            # The first of a resumed run's file, so it is met last: it hides what older files have from there on.
            if event.session_log.status == SessionLog.START:
                hidden_from = min(hidden_from, event.step)
            values = {value.tag: value.simple_value for value in event.summary.value if value.tag in tags}
            if not values or event.step >= hidden_from:
                continue
            if event.step not in found and len(found) == count:
                return _sorted(found)
            _, known = found.setdefault(event.step, (event.wall_time, {}))
            known.update({tag: value for tag, value in values.items() if tag not in known})
    return _sorted(found)


def _sorted(found: Mapping[int, tuple[float, dict[str, float]]]) -> tuple[LoggedStep, ...]:
    return tuple(LoggedStep(step, time, values) for step, (time, values) in sorted(found.items()))


def _events_backwards(data: bytes) -> Iterator[Event]:
    """The events of a file, last one first. The end of a record that is being written is left out."""
    places, start = [], 0
    while start + _HEAD.size <= len(data):
        length, _ = _HEAD.unpack_from(data, start)
        start += _HEAD.size
        if start + length + _TAIL_BYTES > len(data):
            break
        places.append((start, start + length))
        start += length + _TAIL_BYTES
    for first, last in reversed(places):
        try:
            yield Event.FromString(data[first:last])
        except DecodeError:
            continue

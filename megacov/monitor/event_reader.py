"""The one reader of TensorBoard event files: of megacov, of verl and slime, of any torch or TensorFlow writer."""

from __future__ import annotations

import io
import re
from array import array
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto

from megacov.errors import DataError
from megacov.monitor.event_records import HEAD_BYTES, EventRecords, parse_event
from megacov.monitor.history import History, Series

_PATTERN = "*tfevents*"
# A file's first event is its version, of some 40 bytes.
_FIRST_BYTES = 1 << 12
_TEXT_SUFFIX = "/text_summary"
# Field 7 of an Event, a session's start: `(7 << 3) | 2`.
_SESSION_BYTE = b"\x3a"
# Where a tensor of one number has it: in its content, or in a field. `tf.summary.scalar` makes all of them float32.
_NUMBERS: dict[int, tuple[np.dtype[Any], str]] = {
    types_pb2.DT_FLOAT: (np.dtype("<f4"), "float_val"),
    types_pb2.DT_DOUBLE: (np.dtype("<f8"), "double_val"),
    types_pb2.DT_INT32: (np.dtype("<i4"), "int_val"),
    types_pb2.DT_INT64: (np.dtype("<i8"), "int64_val"),
    types_pb2.DT_BOOL: (np.dtype("?"), "bool_val"),
}


def read_history(directory: Path, *, tags: Collection[str] | None = None) -> History:
    """Read the event files of one folder, not of those below it, in the order in which their writers began.

    Where several writers have written a tag at the same step, the last one's value counts. A writer that says at which
    step it starts, as one with `purge_step` does, takes back all points of earlier writers from there on. Files that
    are empty, damaged, cut off or still being written, and restarts that take points back or repeat them, are named in
    `History.problems`; a file counts up to its damage.

    Args:
        directory: folder of event files, or one event file.
        tags: scalars and texts to read; events without them are skipped unparsed. None for all.

    Returns:
        Scalars, also those that TensorFlow 2 writes as tensors, and texts, without the suffix `/text_summary` that
        torch appends to their tags. Values that are not finite stay.

    Raises:
        DataError: the folder is missing or has no event files.
    """
    reading = _Reading(tags)
    for path in _in_order(directory):
        reading.read(path)
    return reading.history()


def _in_order(directory: Path) -> list[Path]:
    """Event files by the time of their first event; their names have whole seconds only."""
    try:
        paths = [directory] if directory.is_file() else [path for path in directory.iterdir() if path.match(_PATTERN)]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{directory} is not a folder: give a folder of TensorBoard event files.") from None
    except OSError as error:  # which `glob` would take for an empty folder
        raise DataError(f"{directory} cannot be listed ({error.strerror}): make it readable.") from error
    if not paths:
        below = sorted({str(path.parent.relative_to(directory)) for path in directory.glob(f"**/{_PATTERN}")})
        raise DataError(
            f"{directory} has no TensorBoard events: "
            + (f"give a folder below it that has ({', '.join(below[:5])})." if below else "the run has not started,")
            + ("" if below else " or its folder was emptied.")
        )
    return sorted(paths, key=lambda path: (_begin_time(path), path.name))


def _begin_time(path: Path) -> float:
    try:
        with path.open("rb") as file:
            for record in EventRecords(io.BytesIO(file.read(_FIRST_BYTES))):
                return float(parse_event(record).wall_time)
    except (OSError, DecodeError):
        pass  # `read` meets the same problem, and names it
    second = re.search(r"tfevents\.(\d+)\.", path.name)
    return float(second[1]) if second else 0.0


class _Reading:
    """Points, texts and problems so far, from one file after the other."""

    def __init__(self, tags: Collection[str] | None) -> None:
        self._tags = None if tags is None else frozenset(tags)
        names = [re.escape(tag.encode()) for tag in tags or ()]
        self._candidate = None if tags is None else re.compile(b"|".join([re.escape(_SESSION_BYTE), *names]))
        self._points: dict[str, tuple[array[int], array[float]]] = {}
        self._texts: dict[str, tuple[int, str]] = {}
        self._plugins: dict[str, str] = {}
        self._problems: list[str] = []
        self._num_earlier: dict[str, int] = {}  # points of a tag that earlier files have

    def read(self, path: Path) -> None:
        self._num_earlier = {tag: len(steps) for tag, (steps, _) in self._points.items()}
        try:
            with path.open("rb") as file:
                records = EventRecords(file)
                self._read_records(records, path)
        except OSError as error:
            self._problems.append(f"{path} cannot be read ({error.strerror}).")
            return
        if records.size == 0:
            # A resume that cuts a file continues it under a longer name, and leaves the old one empty.
            if not any(path.parent.glob(f"{path.name}.until_*")):
                self._problems.append(f"{path} is empty.")
        elif records.end < records.size:
            lost = f"the {records.size - records.end} bytes from byte {records.end} on do not count"
            reason = "is damaged" if records.is_damaged else "was cut off within an event, or is still being written"
            self._problems.append(f"{path} {reason}: {lost}.")
        self._name_repeated(path)

    def _read_records(self, records: EventRecords, path: Path) -> None:
        candidate = self._candidate
        for record in records:
            if candidate is not None and not candidate.search(record, HEAD_BYTES):
                continue
            try:
                event = parse_event(record)
            except DecodeError:
                records.end -= len(record)
                records.is_damaged = True
                return
            if event.session_log.status == SessionLog.START:
                self._take_back(path, event.step)
            for value in event.summary.value:
                self._add(value, event.step)

    def _add(self, value: Summary.Value, step: int) -> None:
        tag = value.tag
        kind = value.WhichOneof("value")
        if kind == "simple_value":
            number: float | None = value.simple_value
        elif kind == "tensor":
            tag = tag.removesuffix(_TEXT_SUFFIX)
            plugin = value.metadata.plugin_data.plugin_name or self._plugins.get(value.tag, "")
            self._plugins[value.tag] = plugin  # TensorFlow names it with a tag's first value only
            if value.tensor.dtype == types_pb2.DT_STRING:
                if plugin == "text" and (self._tags is None or tag in self._tags):
                    self._texts[tag] = step, b"\n".join(value.tensor.string_val).decode(errors="replace")
                return
            number = _number(value.tensor) if plugin in ("scalars", "") else None
        else:
            return
        if number is not None and (self._tags is None or tag in self._tags):
            points = self._points.get(tag)
            if points is None:
                points = self._points[tag] = (array("q"), array("d"))
            points[0].append(step)
            points[1].append(number)

    def _take_back(self, path: Path, first_step: int) -> None:
        num_removed = 0
        for tag, (steps, values) in self._points.items():
            is_kept = np.array(steps, dtype=np.int64) < first_step
            num_removed += len(steps) - int(is_kept.sum())
            self._points[tag] = (
                array("q", np.array(steps, dtype=np.int64)[is_kept].tobytes()),
                array("d", np.array(values)[is_kept].tobytes()),
            )
            self._num_earlier[tag] = len(self._points[tag][0])
        self._texts = {tag: (step, text) for tag, (step, text) in self._texts.items() if step < first_step}
        if num_removed:
            self._problems.append(
                f"{path} begins with a restart at step {first_step}: {num_removed} points that earlier files have from"
                " there on do not count."
            )

    def _name_repeated(self, path: Path) -> None:
        num_repeated = 0
        for tag, num_earlier in self._num_earlier.items():
            steps = np.array(self._points[tag][0], dtype=np.int64)
            num_repeated += len(np.intersect1d(steps[:num_earlier], steps[num_earlier:]))
        if num_repeated:
            self._problems.append(
                f"{path} repeats {num_repeated} points of earlier files, as a restart does: its own values count."
            )

    def history(self) -> History:
        return History(
            scalars={tag: Series.of_points(steps, values) for tag, (steps, values) in self._points.items() if steps},
            texts={tag: text for tag, (_, text) in self._texts.items()},
            problems=tuple(self._problems),
        )


def _number(tensor: TensorProto) -> float | None:
    """The number of a tensor that holds a single one; None for others."""
    if tensor.dtype not in _NUMBERS or any(dimension.size != 1 for dimension in tensor.tensor_shape.dim):
        return None
    dtype, field = _NUMBERS[tensor.dtype]
    if len(tensor.tensor_content) == dtype.itemsize:
        return float(np.frombuffer(tensor.tensor_content, dtype)[0])
    values = getattr(tensor, field)
    return float(values[0]) if len(values) == 1 and not tensor.tensor_content else None

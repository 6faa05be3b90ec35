"""Cuts a run's TensorBoard event files back to a step, so that a resumed run shows every step once.

SummaryWriter's purge_step does not do that: TensorBoard's default data server ignores it, and keeps the old points of
tags that are not written again (TensorBoard 2.21).
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG

from megacov.monitor.event_records import EventRecords, parse_event

_CUT = re.compile(r"\.until_(\d+)$")


@dataclass(frozen=True, slots=True)
class _Cut:
    """Bytes of an event file that stay, and those that go; and where it is damaged, if it is."""

    kept: bytes
    removed: bytes
    damaged_at: int | None = None


def cut_event_files(directory: Path, *, first_step: int, config_tag: str) -> list[str]:
    """Remove all points of a step or later from the event files of earlier writers, and whatever follows damage.

    A file that loses something is continued under a new name, `<its name>.until_<first_step>`, so that servers that
    have read it read it again. The removed bytes go to a file beside it with `removed` in place of `tfevents`, which no
    reader of event files opens. The old name stays as an empty file until the next call, because
    `tensorboard --load_fast=false` waits for ever for a file that it was reading. A crash at any moment loses nothing:
    the next call finishes the work. It also removes what a dying process has meanwhile written under the old name.

    Args:
        directory: folder of the event files; may be missing.
        first_step: smallest step to remove.
        config_tag: tag of the configuration; the resumed run writes it anew at `first_step - 1`.

    Returns:
        A sentence for each file that was damaged. One that a dying process has left off in the middle is not.

    Raises:
        OSError: the files cannot be read or written.
    """
    problems = []
    _drop_superseded(directory)
    for path in sorted(directory.glob("events.out.tfevents.*")):
        cut = _cut(path.read_bytes(), first_step=first_step, config_tag=config_tag)
        if cut.removed:
            removed = _replace(path, cut, first_step=first_step)
            if cut.damaged_at is not None:
                problems.append(
                    f"{path} is damaged at byte {cut.damaged_at}: the steps after it are lost to charts, law and"
                    f" alarms; {removed.name} beside it keeps their bytes."
                )
    return problems


def _drop_superseded(directory: Path) -> None:
    """Remove empty files of an earlier call, and the longer file where a crash has left both a file and its cut."""
    by_original: dict[str, list[tuple[float, Path]]] = {}
    for path in directory.glob("events.out.tfevents.*"):
        until = _CUT.search(path.name)
        if path.stat().st_size == 0:
            path.unlink()
        else:
            found = by_original.setdefault(_CUT.sub("", path.name), [])
            found.append((float(until[1]) if until else float("inf"), path))
    for found in by_original.values():
        for _, path in sorted(found)[1:]:  # each cut of a file ends earlier than the one before
            _replace(path, _Cut(b"", path.read_bytes()), first_step=0)


def _replace(path: Path, cut: _Cut, *, first_step: int) -> Path:
    """The file with the removed bytes."""
    aside = path.name.replace("tfevents", "removed", 1)
    removed = next(name for i in count(1) if not (name := path.with_name(f"{aside}.{i}")).exists())
    _write(removed, cut.removed)
    fresh = path.with_name(f"{_CUT.sub('', path.name)}.until_{first_step}")
    if cut.kept:
        _write(fresh, cut.kept)
    if fresh != path or not cut.kept:
        _write(path, b"")
    return removed


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"tmp_{path.name.replace('tfevents', 'unfinished')}")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _cut(content: bytes, *, first_step: int, config_tag: str) -> _Cut:
    kept: list[bytes] = []
    removed: list[bytes] = []
    has_points, end = False, 0
    records = EventRecords(io.BytesIO(content))
    for record in records:
        try:
            event = parse_event(record)
        except DecodeError:
            records.is_damaged = True
            break
        end += len(record)
        is_removed = _is_removed(event, first_step=first_step, config_tag=config_tag)
        (removed if is_removed else kept).append(record)
        has_points |= not is_removed and any(value.tag != CONFIG_SUMMARY_TAG for value in event.summary.value)
    damaged_at = end if records.is_damaged else None
    if not has_points:
        return _Cut(b"", content, damaged_at)
    return _Cut(b"".join(kept), b"".join(removed) + content[end:], damaged_at)


def _is_removed(event: Event, *, first_step: int, config_tag: str) -> bool:
    is_config = any(value.tag.startswith(config_tag) for value in event.summary.value)
    return event.HasField("summary") and event.step >= first_step - is_config

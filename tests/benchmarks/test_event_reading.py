"""The benchmark of event files, small: all readers read the same points."""

from __future__ import annotations

from pathlib import Path

from benchmarks.event_reading import measure, write_points


def test_our_reader_reads_what_tensorboard_reads(tmp_path: Path) -> None:
    write_points(tmp_path, num_points=2_000, num_tags=100)
    ours, two_tags, theirs = (measure(reader, tmp_path) for reader in ("ours", "ours, two tags", "EventAccumulator"))
    assert (ours["points"], two_tags["points"], theirs["points"]) == (2_000, 40, 2_000)
    assert ours["digest"] == theirs["digest"] != two_tags["digest"]

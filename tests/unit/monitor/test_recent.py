"""The newest steps of a run, from event files that the project's own writer has written."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacov.monitor.recent import read_recent
from megacov.monitor.tensorboard import MetricWriter

TAGS = ("reward/mean", "entropy/token_mean")


def write(folder: Path, steps: range, reward: float, *, first_step: int | None = None) -> Path:
    """A file with some steps of a reward; returns it."""
    before = set(folder.glob("events*"))
    with MetricWriter(folder, first_step=first_step) as writer:
        writer.write_config("run: {}")
        for step in steps:
            writer.write_scalars({"reward/mean": reward + step, "perf/step_s": 1.0}, step=step)
            writer.write_scalars({"entropy/token_mean": 2.0}, step=step)
    (path,) = set(folder.glob("events*")) - before
    # Names begin with the second in which a file was made.
    return path.rename(folder / f"events.out.tfevents.{10**9 + len(before)}")


def rewards(folder: Path, count: int = 3) -> list[tuple[int, float]]:
    return [(each.step, each.values["reward/mean"]) for each in read_recent(folder, TAGS, count=count)]


def test_the_newest_steps_are_read_with_all_their_values(tmp_path):
    write(tmp_path, range(1, 9), 0.5)
    newest = read_recent(tmp_path, TAGS, count=3)
    assert [(each.step, each.values) for each in newest] == [
        (step, {"reward/mean": step + 0.5, "entropy/token_mean": 2.0}) for step in (6, 7, 8)
    ]
    assert newest[0].time <= newest[1].time <= newest[2].time
    assert len(read_recent(tmp_path, TAGS, count=99)) == 8


def test_a_run_may_have_logged_nothing(tmp_path):
    assert read_recent(tmp_path / "none", TAGS, count=3) == ()
    write(tmp_path, range(0), 0.0)
    assert read_recent(tmp_path, TAGS, count=3) == ()


def test_what_a_resumed_run_does_again_counts_and_what_it_has_not_done_yet_is_hidden(tmp_path):
    write(tmp_path, range(1, 7), 0.0)
    write(tmp_path, range(4, 5), 100.0, first_step=4)
    assert rewards(tmp_path) == [(2, 2.0), (3, 3.0), (4, 104.0)]
    write(tmp_path, range(0), 0.0, first_step=3)
    assert rewards(tmp_path) == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_record_that_is_being_written_is_left_out(tmp_path, cut):
    path = write(tmp_path, range(1, 5), 0.0)
    path.write_bytes(path.read_bytes()[:-cut])
    newest = read_recent(tmp_path, TAGS, count=2)
    assert [each.step for each in newest] == [3, 4] and set(newest[-1].values) == {"reward/mean"}


def test_a_damaged_record_is_passed_over(tmp_path):
    path = write(tmp_path, range(1, 5), 0.0)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"reward/mean")
    data[place - 4 : place] = b"\xff" * 4
    path.write_bytes(data)
    assert [each.step for each in read_recent(tmp_path, TAGS, count=2)] == [3, 4]

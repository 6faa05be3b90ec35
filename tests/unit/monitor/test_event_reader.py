"""Event files of real writers, healthy, damaged, restarted and growing, read back against what was written."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from megacov.errors import DataError
from megacov.monitor.event_reader import read_history
from megacov.monitor.history import History
from megacov.monitor.tensorboard import MetricWriter


def write(folder: Path, steps: Iterable[int], value: float, *, tag: str = "a", purge_step: int | None = None) -> Path:
    """Write a value at some steps with torch's writer; returns its file."""
    before = set(folder.glob("*"))
    with SummaryWriter(str(folder), purge_step=purge_step) as writer:
        for step in steps:
            writer.add_scalar(tag, value, step)
    (path,) = set(folder.glob("*")) - before
    return path


def points(history: History, tag: str = "a") -> dict[int, float]:
    series = history.scalars[tag]
    assert (series.steps.dtype, series.values.dtype) == (np.int64, np.float64)
    assert (np.diff(series.steps) > 0).all()
    return dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def test_scalars_and_texts_of_torch(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("old", 0.1, 3)
        writer.add_scalar("old", math.nan, 2)  # late, as an evaluation of an earlier step is
        writer.add_scalar("new/nested/tag", 0.1, 3, new_style=True)
        writer.add_scalar("exact", 0.1, 2**40, new_style=True, double_precision=True)
        writer.add_text("notes", "first", 1)
        writer.add_text("notes", "zweites \u00fc", 2)
        writer.add_histogram("histogram", np.arange(8.0), 1)
        writer.add_image("image", np.zeros((3, 8, 8)), 1)
        writer.add_custom_scalars({"page": {"chart": ["Multiline", ["old"]]}})
        writer.add_hparams({"lr": 0.1}, {"metric": 1.0}, run_name="below")
    history = read_history(tmp_path)
    assert set(history.scalars) == {"old", "new/nested/tag", "exact"}
    assert str(points(history, "old")) == str({2: math.nan, 3: float(np.float32(0.1))})
    assert points(history, "new/nested/tag") == {3: float(np.float32(0.1))}
    assert points(history, "exact") == {2**40: 0.1}
    assert (history.texts, history.problems) == ({"notes": "zweites \u00fc"}, ())
    assert points(read_history(tmp_path / "below"), "metric") == {0: 1.0}


def test_scalars_in_the_style_of_tensorflow_2(tmp_path: Path) -> None:
    writer = EventFileWriter(str(tmp_path))
    dtypes = (np.float32, np.float64, np.int32, np.int64, np.bool_)
    for step in (1, 2):
        event = Event(step=step)
        for dtype in dtypes:
            value = event.summary.value.add(tag=dtype.__name__, tensor=make_tensor_proto(dtype(1)))
            if step == 1:  # TensorFlow names the plugin with a tag's first value only
                value.metadata.plugin_data.plugin_name = "scalars"
        for tag, tensor, plugin in (("vector", np.ones(3), "scalars"), ("curve", np.float32(1), "pr_curves")):
            value = event.summary.value.add(tag=tag, tensor=make_tensor_proto(tensor))
            value.metadata.plugin_data.plugin_name = plugin
        event.summary.value.extend(scalar_pb("tensorboard", 1.0).value)
        for number, content in ((1, b"abc"), (21, b""), (10**6, b"abcd")):
            broken = event.summary.value.add(tag="broken")
            broken.tensor.dtype, broken.tensor.tensor_content = number, content
        content = event.summary.value.add(tag="content")
        content.tensor.dtype, content.tensor.tensor_content = 1, np.float32(1).tobytes()
        writer.add_event(event)
    writer.close()
    history = read_history(tmp_path)
    assert set(history.scalars) == {"tensorboard", "content", *(dtype.__name__ for dtype in dtypes)}
    assert all(points(history, tag) == {1: 1.0, 2: 1.0} for tag in history.scalars)


def test_only_the_tags_that_are_asked_for(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path), purge_step=0) as writer:
        for tag in ("a", "ab", "b/a", "c"):
            writer.add_scalar(tag, 1.0, 1)
        writer.add_text("a/notes", "text", 1)
        writer.add_text("c/notes", "text", 1)
    history = read_history(tmp_path, tags=("a", "a/notes", "absent"))
    assert (set(history.scalars), set(history.texts)) == ({"a"}, {"a/notes"})
    assert read_history(tmp_path, tags=()).scalars == {}


def test_of_overlapping_steps_the_later_writers_value_counts_once(tmp_path: Path) -> None:
    write(tmp_path, range(1, 11), 1.0)
    write(tmp_path, range(1, 4), 5.0, tag="other")
    second = write(tmp_path, range(6, 9), 2.0)
    history = read_history(tmp_path)
    assert points(history) == {step: 2.0 if 6 <= step <= 8 else 1.0 for step in range(1, 11)}
    assert history.problems == (
        f"{second} repeats 3 points of earlier files, as a restart does: its own values count.",
    )


@pytest.mark.parametrize("tags", [None, ("a", "other")])
def test_a_restart_takes_back_what_it_says_it_does(tmp_path: Path, tags: tuple[str, ...] | None) -> None:
    write(tmp_path, range(1, 11), 1.0).rename(tmp_path / "events.out.tfevents.01")
    write(tmp_path, range(1, 11), 5.0, tag="other").rename(tmp_path / "events.out.tfevents.02")
    third = write(tmp_path, range(6, 9), 2.0, purge_step=6)
    history = read_history(tmp_path, tags=tags)
    assert points(history) == dict.fromkeys(range(1, 6), 1.0) | dict.fromkeys(range(6, 9), 2.0)
    assert points(history, "other") == dict.fromkeys(range(1, 6), 5.0)
    assert history.problems == (
        f"{third} begins with a restart at step 6: 10 points that earlier files have from there on do not count.",
    )
    # TensorBoard reads files in the order of their names.
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    for tag in ("a", "other"):
        assert {event.step: event.value for event in events.Scalars(tag)} == points(history, tag)


def test_files_are_read_in_the_order_in_which_their_writers_began(tmp_path: Path) -> None:
    """Their names do not have it: within a second, they go by machine, process and a count without leading zeros."""
    for number in range(3):
        write(tmp_path, [1], float(number)).rename(tmp_path / f"events.out.tfevents.{9 - number}")
    assert points(read_history(tmp_path)) == {1: 2.0}


def test_a_resumed_run_of_ours_has_no_problems(tmp_path: Path) -> None:
    for first_step in (None, 4):
        with MetricWriter(tmp_path, first_step=first_step) as writer:
            writer.write_config(f"first_step: {first_step}")
            for step in range(first_step or 1, 8):
                writer.write_scalars({"reward/mean": float(first_step or 1)}, step=step)
    assert 0 in [path.stat().st_size for path in tmp_path.iterdir()], "the cut file is left empty"
    history = read_history(tmp_path)
    assert points(history, "reward/mean") == {1: 1.0, 2: 1.0, 3: 1.0, 4: 4.0, 5: 4.0, 6: 4.0, 7: 4.0}
    assert history.texts == {"run/config": "    first_step: 4\n"}
    assert history.problems == ()


def _cut_short(content: bytes) -> bytes:
    return content[:-5]


def _with_zeros(content: bytes) -> bytes:
    return content + bytes(4096)


def _with_wrong_value(content: bytes) -> bytes:
    """One bit of the value at step 5000, far from the file's end, which no length shows."""
    position = len(content) // 2
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def _with_huge_length(content: bytes) -> bytes:
    return content + b"\xff" * 7 + b"\x7f" + bytes(16)


DAMAGES: dict[Callable[[bytes], bytes], tuple[str, int]] = {
    _cut_short: ("was cut off within an event, or is still being written", 9999),
    _with_zeros: ("is damaged", 10000),
    _with_wrong_value: ("is damaged", 5000),
    _with_huge_length: ("is damaged", 10000),
}


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("long"), range(1, 10001), 1.0)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_counts_up_to_its_damage_and_is_named(
    tmp_path: Path, long_file: Path, damage: Callable[[bytes], bytes]
) -> None:
    broken = tmp_path / long_file.name
    broken.write_bytes(damage(long_file.read_bytes()))
    later = write(tmp_path, range(20001, 20011), 2.0)
    reason, about = DAMAGES[damage]
    history = read_history(tmp_path)
    (problem,) = history.problems
    assert problem.startswith(f"{broken} {reason}: the ") and later.name not in problem
    kept = [step for step in points(history) if step <= 10000]
    assert kept == list(range(1, len(kept) + 1)) and abs(len(kept) - about) <= 50
    assert max(points(history)) == 20010


def test_files_without_anything_in_them_are_named(tmp_path: Path) -> None:
    write(tmp_path, [1], 1.0)
    (tmp_path / "events.out.tfevents.1.empty").touch()
    (tmp_path / "events.out.tfevents.2.noise").write_bytes(random.Random(1).randbytes(5000))
    (tmp_path / "events.out.tfevents.3.short").write_bytes(b"abc")
    (tmp_path / "events.out.tfevents.4.folder").mkdir()
    history = read_history(tmp_path)
    assert points(history) == {1: 1.0}
    first, second, third, fourth = history.problems
    assert first.endswith("1.empty is empty.")
    assert second.endswith("2.noise is damaged: the 5000 bytes from byte 0 on do not count.")
    assert "3.short was cut off" in third
    assert "4.folder cannot be read (Is a directory)" in fourth


def test_every_prefix_of_a_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """A writer hands over blocks of bytes, so a reader meets a file that ends anywhere."""
    content = write(tmp_path / "whole", range(1, 6), 1.0).read_bytes()
    growing = tmp_path / "events.out.tfevents.1"
    counts = []
    for size in range(len(content) + 1):
        growing.write_bytes(content[:size])
        history = read_history(tmp_path)
        counts.append(len(points(history)) if history.scalars else 0)
        assert len(history.problems) <= 1
    assert counts == sorted(counts) and set(counts) == set(range(6))


def test_any_wrong_bit_is_found(tmp_path: Path) -> None:
    """No checksum lets a wrong number through: what is read is a beginning of what was written."""
    content = write(tmp_path / "whole", range(1, 6), 1.0).read_bytes()
    path = tmp_path / "events.out.tfevents.1"
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        history = read_history(tmp_path)
        read = points(history) if history.scalars else {}
        assert read == dict.fromkeys(range(1, len(read) + 1), 1.0) and len(read) < 5
        assert len(history.problems) == 1


def test_events_longer_than_a_block_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(1, 400):
            writer.add_scalar("a", float(step), step)
            if step % 100 == 0:
                writer.add_text("long", "x" * 30_000, step)
    expected = points(read_history(tmp_path))
    assert expected == {step: float(step) for step in range(1, 400)}
    monkeypatch.setattr("megacov.monitor.event_records._BLOCK_BYTES", 1000)
    history = read_history(tmp_path)
    assert points(history) == expected
    assert (history.texts, history.problems) == ({"long": "x" * 30_000}, ())


def test_a_folder_without_events_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be listed \(File name too long\)"):
        read_history(tmp_path / ("x" * 300))
    with pytest.raises(DataError, match="missing is not a folder"):
        read_history(tmp_path / "missing")
    with pytest.raises(DataError, match="has no TensorBoard events: the run has not started"):
        read_history(tmp_path)
    path = write(tmp_path / "project" / "experiment", [1], 1.0)
    with pytest.raises(DataError, match=r"give a folder below it that has \(project/experiment\)\."):
        read_history(tmp_path)
    assert points(read_history(path)) == {1: 1.0}

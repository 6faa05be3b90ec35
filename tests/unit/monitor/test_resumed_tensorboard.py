"""A resumed run shows every step once, in each of TensorBoard's readers: asked of real servers over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megacov.monitor.covariance_metrics import covariance_histogram
from megacov.monitor.tensorboard import MetricWriter
from tests.support.tensorboard_servers import READERS, TensorBoards, serving

_HISTOGRAM = covariance_histogram(torch.tensor([0.5, 2.0]), torch.ones(2).bool(), group=None)


def _train(folder: Path, steps: Iterable[int], *, first_step: int | None = None, saves: Iterable[int] = ()) -> None:
    """Write what a run writes until it ends. The reward is 10 times the first step."""
    with MetricWriter(folder, first_step=first_step) as writer:
        writer.write_config(f"run: {{steps: {first_step}}}")
        for step in steps:
            writer.write_scalars({"reward/mean": 10.0 * (first_step or 0)}, step=step)
            if step in saves:
                writer.write_scalars({"perf/save_s": 1.0}, step=step)
                writer.write_histogram("cov/histogram", _HISTOGRAM, step=step)


def _newest(folder: Path) -> Path:
    return max(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)


def _truncated(folder: Path) -> None:
    path = _newest(folder)
    path.write_bytes(path.read_bytes()[:-5])


def _with_zeros(folder: Path) -> None:
    """As some file systems leave a file after a power cut."""
    with _newest(folder).open("ab") as file:
        file.write(bytes(4096))


def _with_flipped_byte(folder: Path) -> None:
    path = _newest(folder)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


def _killed(folder: Path) -> None:
    _train(folder, range(1, 7), saves=(2, 4, 5))


def _resumed(folder: Path) -> None:
    _train(folder, range(4, 9), first_step=4)


def _write_others(root: Path) -> None:
    """Runs that need no server while they are written."""
    damages = {_truncated: 5, _with_zeros: 6, _with_flipped_byte: 5}
    _killed(root / "resumed_twice")
    for damage in damages:
        _train(root / damage.__name__, range(1, 7))
        damage(root / damage.__name__)
    dying = MetricWriter(root / "dying")
    for step in range(1, 5):
        dying.write_scalars({"reward/mean": 0.0}, step=step)
    dying.flush()
    _train(root / "cut_twice", range(1, 7))
    _train(root / "left", range(1, 4), saves=(2,))

    _wait_for_next_second()
    _train(root / "resumed_twice", range(4, 8), first_step=4, saves=(5,))
    for damage, last in damages.items():
        _train(root / damage.__name__, range(last + 1, 9), first_step=last + 1)
    _train(root / "dying", range(3, 5), first_step=3)
    # The killed run's rank has not ended yet, and no lock of the file system has stopped the resumed run.
    dying.write_scalars({"reward/mean": -1.0}, step=9)
    dying.close()
    # A resume was killed after it had written the shorter file, and before it had removed the longer one.
    original = _newest(root / "cut_twice")
    content = original.read_bytes()
    _train(root / "cut_twice", (), first_step=5)
    original.write_bytes(content)
    _train(root / "left", range(4, 6), first_step=4)

    _wait_for_next_second()
    _train(root / "resumed_twice", range(3, 6), first_step=3)
    _train(root / "dying", range(5, 6), first_step=5)
    _train(root / "cut_twice", range(3, 5), first_step=3)


def _wait_for_next_second() -> None:
    """Event files are read in the order of their names, which begin with the second; runs start seconds apart."""
    time.sleep(1.0 - time.time() % 1.0)


_EXPECTED = {
    "resumed": list(range(1, 9)),
    "resumed_twice": list(range(1, 6)),
    "_truncated": list(range(1, 9)),
    "_with_zeros": list(range(1, 9)),
    "_with_flipped_byte": list(range(1, 9)),
    "dying": [1, 2, 3, 4, 5],
    "cut_twice": [1, 2, 3, 4],
    "left": [1, 2, 3, 4, 5],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Resumed runs, one of them under the eyes of servers that have shown what is removed later."""
    root = tmp_path_factory.mktemp("runs")
    _killed(root / "resumed")
    with serving(root) as watching:
        for reader in READERS:
            watching.wait(reader, "resumed", "reward/mean", range(1, 7))
        _resumed(root / "resumed")
        for reader in READERS:
            watching.wait(reader, "resumed", "reward/mean", range(1, 9))
    _write_others(root)
    return root


@pytest.fixture(scope="module")
def boards(root: Path) -> Iterator[TensorBoards]:
    with serving(root) as found:
        for reader in READERS:
            for run, steps in _EXPECTED.items():
                found.wait(reader, run, "reward/mean", steps)
        yield found


def _check_accumulator(root: Path, run: str, steps: list[int]) -> None:
    events = EventAccumulator(str(root / run), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    assert [event.step for event in events.Scalars("reward/mean")] == steps


def test_every_reader_shows_each_step_once(boards: TensorBoards, root: Path) -> None:
    for run, steps in _EXPECTED.items():
        _check_accumulator(root, run, steps)
    for reader in READERS:
        for run, saved in {"resumed": [2], "resumed_twice": [2], "left": [2]}.items():
            # The resumed run has not written this tag again.
            assert boards.steps(reader, run, "perf/save_s") == saved, (reader, run)
            histograms = boards.get(reader, "plugin/histograms/histograms", run=run, tag="cov/histogram")
            assert [step for _, step, _ in histograms] == saved, (reader, run)
        points = boards.get(reader, "plugin/scalars/scalars", run="resumed_twice", tag="reward/mean")
        assert [value for *_, value in points] == [0.0, 0.0, 30.0, 30.0, 30.0]
        texts = boards.get(reader, "plugin/text/text", run="resumed_twice", tag="run/config/text_summary")
        assert [text["step"] for text in texts] == [0, 2], "one configuration for each start that counts"


def test_the_custom_scalars_page_draws_the_tags_that_it_names(boards: TensorBoards) -> None:
    for reader in READERS:
        layout = boards.get(reader, "plugin/custom_scalars/layout")
        charts = {chart["title"]: chart for chart in layout["category"][0]["chart"]}
        pattern, _ = charts["reward, and its ceiling where the entropy law holds"]["multiline"]["tag"]
        found = boards.get(reader, "plugin/custom_scalars/scalars", run="resumed", tag=pattern)
        assert list(found["tag_to_events"]) == ["reward/mean"]
        (series,) = charts["ceiling of the entropy law, 95 %"]["margin"]["series"]
        assert series == {"value": "law/ceiling", "lower": "law/ceiling_low", "upper": "law/ceiling_high"}


def test_what_is_removed_is_kept_where_no_reader_looks(tmp_path: Path) -> None:
    _killed(tmp_path)
    before = _newest(tmp_path).read_bytes()
    _train(tmp_path, (), first_step=4)
    (kept,) = tmp_path.glob("events.out.tfevents.*.until_4")
    assert kept.with_suffix("").read_bytes() == b""
    (removed,) = tmp_path.glob("events.out.removed.*")
    assert len(kept.read_bytes()) + len(removed.read_bytes()) == len(before)
    assert before.startswith(kept.read_bytes()[:100]) and before.endswith(removed.read_bytes()[-100:])
    _train(tmp_path, (), first_step=4)
    assert not kept.with_suffix("").exists() and kept.exists()

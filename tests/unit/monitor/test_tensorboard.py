"""Real event files, written and read back; a full disk gives an error of one sentence."""

from __future__ import annotations

import re
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from megacov.errors import DataError
from megacov.losses import Metric
from megacov.monitor import tensorboard
from megacov.monitor.covariance_metrics import covariance_histogram
from megacov.monitor.custom_scalars import EVALUATION_PATTERNS, lay_out
from megacov.monitor.tags import TAGS, metric_tags
from megacov.monitor.tensorboard import MetricWriter


def read(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}).Reload()


def read_layout(events: EventAccumulator) -> layout_pb2.Layout:
    (event,) = events.Tensors("custom_scalars__config__")
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond num_bytes: writing fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_scalars_histogram_and_config_are_read_back(tmp_path):
    histogram = covariance_histogram(
        torch.tensor([-0.3, 0.02, 4.0, 9.0]), torch.tensor([1, 1, 1, 0]).bool(), group=None
    )
    with MetricWriter(tmp_path / "run" / "tensorboard") as writer:
        writer.write_config("run:\n  seed: 1\n")
        writer.write_scalars(
            {"reward/mean": 0.25, "entropy/token_mean": torch.tensor(1.5, dtype=torch.float64)}, step=3
        )
        writer.write_scalars({"reward/mean": 0.5}, step=4)
        writer.write_histogram("cov/histogram", histogram, step=4)
    events = read(tmp_path / "run" / "tensorboard")
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(3, 0.25), (4, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("entropy/token_mean")] == [(3, 1.5)]
    (histogram_event,) = events.Histograms("cov/histogram")
    value = histogram_event.histogram_value
    assert (histogram_event.step, value.num, value.min, value.max) == (4, 3, pytest.approx(-0.3), 4.0)
    assert sum(value.bucket) == 3
    text = events.Tensors("run/config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "    run:\n      seed: 1\n"


def test_flushed_scalars_can_be_read_while_the_run_goes_on(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write_scalars({"reward/mean": 0.25}, step=0)
        writer.flush()
        assert len(read(tmp_path).Scalars("reward/mean")) == 1


def test_the_custom_scalars_page_names_declared_scalars_exactly(tmp_path):
    MetricWriter(tmp_path).close()
    layout = read_layout(read(tmp_path))
    assert layout.category[0].title == "Entropy and reward"
    charts = [chart for category in layout.category for chart in category.chart]
    assert len({chart.title for chart in charts}) == len(charts)
    patterns = {chart.title: list(chart.multiline.tag) for chart in charts if chart.multiline.tag}
    assert patterns["entropy (nats)"] == ["entropy/token_mean$", "entropy/sequence_mean$"]
    for title, pattern in ((title, pattern) for title, several in patterns.items() for pattern in several):
        if title not in EVALUATION_PATTERNS:
            (tag,) = (tag for tag in TAGS if re.match(pattern, tag))
            assert TAGS[tag].kind == "scalar" and not re.match(pattern, f"{tag}_total")
    # A point in a tag is no wildcard.
    tails = patterns["covariance by tail (nats)"]
    assert tails and not any(re.match(pattern, "cov/top_0x02pct") for pattern in tails)
    (clip,) = (tags for tags in patterns.values() if "policy/ppo_clip_fraction$" in tags)
    assert clip == ["policy/ppo_clip_fraction$"]
    (margin,) = (chart.margin for chart in charts if not chart.multiline.tag)
    (series,) = margin.series
    assert (series.value, series.lower, series.upper) == ("law/ceiling", "law/ceiling_low", "law/ceiling_high")


def test_the_page_draws_what_evaluations_write():
    tags = ["eval/AIME24/avg@32", "eval/new/set/pass@8", "eval/A/response_length", "eval/A/truncated_share"]
    tags += ["eval/A/negative_log_prob", "eval/A/verifier_failures"]
    drawn = {tag: [title for title, pattern in EVALUATION_PATTERNS.items() if re.match(pattern, tag)] for tag in tags}
    assert [len(titles) for titles in drawn.values()] == [1, 1, 1, 1, 1, 0]


def test_the_page_has_no_charts_that_stay_empty(tmp_path):
    MetricWriter(tmp_path, without=("law/",)).close()
    titles = {chart.title for category in read_layout(read(tmp_path)).category for chart in category.chart}
    drawn = {title for charts in lay_out().values() for title in charts}
    assert drawn - titles == {
        "ceiling of the entropy law, 95 %",
        "coefficients of the law",
        "distance of the rewards from the law",
    }
    assert lay_out(without=("eval/.*", "theorem/", "control/")).keys() == lay_out().keys() - {
        "Predicted against observed change of entropy",
        "Controller",
    }


def test_an_imported_loss_brings_its_tags(tmp_path: Path) -> None:
    tags = metric_tags({"shift": Metric("Mean of d.", "nats")})
    with MetricWriter(tmp_path, extra_tags=tags) as writer:
        writer.write_scalars({"policy/shift": 0.5, "policy/k1": 0.25}, step=1)
    assert [event.value for event in read(tmp_path).Scalars("policy/shift")] == [0.5]


@pytest.mark.parametrize(
    "write",
    [
        lambda writer: writer.write_scalars({"reward/median": 1.0}, step=0),
        lambda writer: writer.write_scalars({"cov/histogram": 1.0}, step=0),
        lambda writer: writer.write_histogram("cov/mean", None, step=0),
    ],
)
def test_an_undeclared_tag_or_kind_is_a_defect(write, tmp_path):
    with MetricWriter(tmp_path) as writer, pytest.raises(AssertionError, match="declared"):
        write(writer)


def test_a_full_disk_is_one_sentence_without_a_traceback_and_closing_is_quiet(tmp_path, monkeypatch):
    def fill(writer: MetricWriter) -> None:
        for step in range(2000):
            writer.write_scalars({"reward/mean": 1.0}, step=step)
            writer.flush()

    inherited = []
    monkeypatch.setattr(tensorboard, "_inherited_hook", inherited.append)
    writer = MetricWriter(tmp_path)
    with largest_file(20_000), pytest.raises(DataError, match=r"cannot be written to .*File too large.*free space"):
        fill(writer)
    writer.close()
    _wait_for_threads()
    assert inherited == []


def test_other_threads_still_show_why_they_died(tmp_path, monkeypatch):
    inherited = []
    monkeypatch.setattr(tensorboard, "_inherited_hook", inherited.append)
    MetricWriter(tmp_path).close()
    thread = threading.Thread(target=lambda: (tmp_path / "missing").read_text())
    thread.start()
    thread.join()
    assert [args.exc_type for args in inherited] == [FileNotFoundError]


def _wait_for_threads() -> None:
    for thread in threading.enumerate():
        if type(thread).__name__ == "_AsyncWriterThread":
            thread.join(timeout=10)


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written to .*choose another run\.directory"):
        MetricWriter(tmp_path / "file" / "tensorboard")

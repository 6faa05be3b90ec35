"""The report: bytes that depend on results alone, the paper's table, and TensorBoard."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megacov.evaluation.report import Report, details_table, paper_table, scalars
from megacov.evaluation.scores import Interval
from megacov.evaluation.set_scores import SetScores
from megacov.evaluation.tensorboard import FOLDER, write_scalars


def _scores(value: float, name: str = "avg@32") -> SetScores:
    return SetScores(
        num_problems=30,
        num_responses=960,
        scores={name: (value, Interval(value - 0.05, value + 0.05)), "pass@4": (0.5, Interval(0.25, 0.75))},
        response_length=100.5,
        truncated_share=0.125,
        negative_log_prob=0.3,
        failures={"timeout": 2},
    )


REPORT = Report(
    model="tiny",
    suite="paper",
    identity={"seed": 0, "model_digest": "abc"},
    settings={"AIME24": {"samples": 32}, "MATH": {"samples": 1}},
    digests={"AIME24": "d1", "MATH": "d2"},
    scores={"AIME24": _scores(0.368), "MATH": _scores(0.846, "avg@1")},
    missing=["Minerva"],
    unreadable={"AIME24": 0, "MATH": 3},
)


def test_json_is_sorted_and_whole():
    text = REPORT.to_json()
    values = json.loads(text)
    assert text == json.dumps(values, sort_keys=True, indent=2) + "\n"
    assert values["average"] == (0.368 + 0.846) / 2
    assert values["missing_sets"] == ["Minerva"]
    assert values["sets"]["AIME24"]["scores"]["avg@32"] == {"value": 0.368, "low": 0.318, "high": 0.418}
    assert values["sets"]["AIME24"]["verifier_failures"] == {"timeout": 2}
    assert values["sets"]["MATH"]["unreadable_answers"] == 3
    assert values["seed"] == 0


def _printed(table, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_tables_show_percents():
    paper = _printed(paper_table(REPORT))
    for shown in ("tiny", "AIME24", "avg@32", "36.8", "31.8-41.8", "84.6", "60.7"):
        assert shown in paper
    details = _printed(details_table(REPORT))
    for shown in ("pass@4", "50.0", "25.0-75.0", "100.5", "12.5", "0.300", " 2 "):
        assert shown in details


def test_names_are_shown_as_they_are():
    shown = _printed(paper_table(replace(REPORT, model="a[red]b[/y]\x1b[31m")))
    assert "a[red]b[/y]?[31m" in shown


def test_a_narrow_table_loses_no_figure():
    scores = {f"Long-name-{number}": _scores(0.1 * number) for number in range(1, 8)}
    text = _printed(paper_table(replace(REPORT, scores=scores)), width=72)
    assert "\u2026" not in text
    assert "60.0" in text


def _read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_tensorboard_keeps_every_checkpoint_whatever_the_order(tmp_path):
    for step, value in ((20, 0.5), (10, 0.25)):
        write_scalars(tmp_path, scalars({"AIME24": _scores(value)}), step=step)
    events = _read(tmp_path / FOLDER)
    found = {event.step: event.value for event in events.Scalars("eval/AIME24/avg@32")}
    assert found == {20: 0.5, 10: 0.25}
    assert {"eval/AIME24/pass@4", "eval/AIME24/truncated_share", "eval/AIME24/verifier_failures"} <= set(
        events.Tags()["scalars"]
    )


def test_a_runs_own_events_are_left_alone(tmp_path):
    from megacov.monitor.tensorboard import MetricWriter

    with MetricWriter(tmp_path / "tensorboard") as writer:
        writer.write_scalars({"reward/mean": 0.5}, step=1)
        write_scalars(tmp_path, {"eval/a/avg@1": 1.0}, step=1)
        writer.write_scalars({"reward/mean": 0.75}, step=2)
    events = _read(tmp_path / "tensorboard")
    assert [event.value for event in events.Scalars("reward/mean")] == [0.5, 0.75]
    assert "eval/a/avg@1" not in events.Tags()["scalars"]

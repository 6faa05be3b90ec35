"""Plain lines of a run whose output is not a terminal."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from megacov.trainer import progress
from megacov.trainer.progress import ProgressReport


def test_one_line_a_step_with_the_numbers_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport("name", num_steps=3, num_groups=4, choice="off") as report:
        report.group_sampled(1)
        report.step(1, {"reward/mean": 0.25, "entropy/token_mean": 1.5, "cov/mean": 7.0})
    assert capsys.readouterr().out == "name  step 1/3  reward 0.250  entropy 1.500\n"


def test_a_long_rollout_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    with ProgressReport("name", num_steps=3, num_groups=2, choice="off") as report:
        report.group_sampled(1)
        report.group_sampled(2)
        report.step(1, {})
        report.group_sampled(1)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "sampling" in line] == [
        "name  sampling: 1 of 2 groups",
        "name  sampling: 2 of 2 groups",
        "name  sampling: 1 of 2 groups",
    ]


def test_bars_are_drawn_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport("name", num_steps=3, num_groups=2, choice="on") as report:
        for number in range(3):
            report.group_sampled(number + 1)
        report.step(1, {"reward/mean": 0.25})
        report.step(2, {"reward/mean": 0.5})
    shown = capsys.readouterr().err
    # Each finished step stays on the screen, above the bars.
    lines = [line.strip() for line in shown.splitlines() if " step " in line]
    assert lines == ["name  step 1/3  reward 0.250", "name  step 2/3  reward 0.500"]
    assert "2/3" in shown.splitlines()[-1]


def test_a_terminal_that_closes_leaves_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with ProgressReport("name", num_steps=3, num_groups=2, choice="auto") as report:
            report.step(1, {"reward/mean": 0.25})
            assert "0/3" in os.read(ours, 10_000).decode()
            monkeypatch.undo()  # as after `keep_output` has replaced a closed terminal
            report.step(2, {"reward/mean": 0.25})
            report.group_sampled(1)
    os.close(ours)
    assert capsys.readouterr().out == "name  step 2/3  reward 0.250\n"

"""Axes and lines of charts."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacov.monitor.report.frame import HEIGHT, WIDTH, Frame, round_ticks, tick_names

ANY_FLOATS = st.lists(st.floats(), max_size=5)


@given(ANY_FLOATS, st.integers(4, 9))
def test_ticks_hold_all_values_at_equal_distances(values, most):
    ticks = round_ticks(values, most=most)
    assert 2 <= len(ticks) <= most + 1
    drawn = [value for value in values if abs(value) < 1e300]
    step = ticks[1] - ticks[0]
    assert step > 0
    assert all(after - before == pytest.approx(step, rel=1e-3) for before, after in pairwise(ticks))
    assert all(ticks[0] - step / 100 <= value <= ticks[-1] + step / 100 for value in drawn)
    assert len(set(tick_names(ticks))) == len(ticks)


def test_ticks_are_round():
    assert tick_names(round_ticks([0.03, 0.97], most=6)) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert tick_names(round_ticks([1, 110], most=8)) == ["0", "20", "40", "60", "80", "100", "120"]
    assert tick_names(round_ticks([2e-7, 1e-6], most=6)) == ["2e-07", "4e-07", "6e-07", "8e-07", "1e-06"]


def places(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", svg)]


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_a_line_stays_in_its_frame_and_breaks_where_a_value_is_not_finite(values):
    xs, ys = np.arange(len(values), dtype=np.float64), np.array(values)
    svg = Frame(xs, ys, x_label="step", y_label="nats").line(xs, ys, "line")
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places(svg))
    assert len(places(svg)) + svg.count("<circle") == np.isfinite(ys).sum()
    pieces = re.sub("[01]+", lambda run: "1", "".join("1" if ok else " " for ok in np.isfinite(ys)))
    assert svg.count("M") + svg.count("<circle") == pieces.count("1")


def test_a_long_line_keeps_its_peaks():
    xs = np.arange(100_000, dtype=np.float64)
    ys = np.sin(xs / 1000)
    ys[77_777] = 50.0
    frame = Frame(xs, ys, x_label="step", y_label="nats")
    drawn = places(frame.line(xs, ys, "line"))
    assert len(drawn) < 1000
    assert min(y for _, y in drawn) == pytest.approx(
        places(frame.line(xs[77_777:77_779], ys[77_777:77_779], "l"))[0][1]
    )


def test_labels_are_escaped():
    axes = Frame([0.0], [0.0], x_label="<b>", y_label='"&').axes()
    assert "<b>" not in axes
    assert "&lt;b&gt;" in axes

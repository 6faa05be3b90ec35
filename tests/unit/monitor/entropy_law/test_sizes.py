"""Lines over model sizes, on the paper's coefficients and on simulated ones."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.entropy_law import PAPER
from megacov.errors import DataError
from megacov.monitor.entropy_law.sizes import SizedLaw, predict_size

LAWS = [SizedLaw(size, a, b) for size, (a, b) in PAPER.items()]


def test_the_papers_32b_from_its_smaller_models():
    found = predict_size(LAWS, 32.0)
    assert found.from_sizes == (0.5, 1.5, 3.0, 7.0)
    logs = np.log10(found.from_sizes)
    for line, values in (
        (found.a, [law.a for law in LAWS]),
        (found.b, [law.b for law in LAWS]),
        (found.ceiling, [law.b - law.a for law in LAWS]),
    ):
        slope, level = np.polyfit(logs, values[:4], 1)
        assert (line.per_tenfold, line.value) == pytest.approx((slope, level + slope * np.log10(32)))
        assert line.error == pytest.approx(line.value - values[4])
    # A straight line promises 32B more than it has: the paper's coefficients flatten above 7B.
    assert found.ceiling.error == pytest.approx(0.070, abs=0.001)
    assert found.ceiling.interval.low < 0.455 < found.ceiling.interval.high


def test_the_7b_is_predicted_within_a_hundredth():
    found = predict_size([law for law in LAWS if law.size <= 7], 7.0)
    assert abs(found.ceiling.error) < 0.012
    assert found.ceiling.value == pytest.approx(found.b.value - found.a.value)


def test_intervals_hold_a_new_run_in_19_of_20_cases():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        sizes = (0.5, 1.5, 3.0, 7.0, 32.0)
        laws = [SizedLaw(size, 0.1 + 0.05 * np.log10(size) + 0.01 * rng.standard_normal(), 1.0) for size in sizes]
        line = predict_size(laws, 32.0).a
        hits += line.interval.low <= laws[-1].a <= line.interval.high
    assert 0.93 < hits / 2000 < 0.97


def test_seeds_count_and_a_size_without_runs_has_no_error():
    found = predict_size([SizedLaw(1, 0.1, 0.4), SizedLaw(1, 0.12, 0.4), SizedLaw(10, 0.2, 0.7)], 100)
    assert (found.a.value, found.a.error) == (pytest.approx(0.29), None)
    assert found.a.interval is not None
    two = predict_size(
        [SizedLaw(1, 0.1, 0.4), SizedLaw(10, 0.2, 0.7), SizedLaw(100, 0.32, 1), SizedLaw(100, 0.3, 1)], 100
    )
    assert two.a.interval is None
    assert two.a.error == pytest.approx(0.3 - 0.31)


@pytest.mark.parametrize(
    ("laws", "size", "sentence"),
    [
        (LAWS[:1], 32, "runs of 2 sizes beside 32, and there are 1"),
        (LAWS[:2], 1.5, "there are 1"),
        ([SizedLaw(0, 1, 1), *LAWS], 32, "above 0"),
        ([SizedLaw(float("nan"), 1, 1), *LAWS], 32, "above 0"),
        (LAWS, -1, "above 0"),
    ],
)
def test_what_has_no_line_is_one_sentence(laws, size, sentence):
    with pytest.raises(DataError, match=sentence):
        predict_size(laws, size)

"""Trailing windows of long runs: made block by block, remembered, and the same as if they were made at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megacov.monitor.alarms import window as windows
from megacov.monitor.history import Series

POINTS = 2 * windows._BLOCK + 100
VALUES = np.random.default_rng(5).normal(size=POINTS)
STEPS = np.arange(POINTS) * 3 + 7


def plain(function: Callable[[Any], Any], values: NDArray[np.float64], size: int) -> list[float]:
    """A function of each window, one window after the other."""
    return [function(values[i - size + 1 : i + 1]) if i + 1 >= size else np.nan for i in range(len(values))]


@pytest.mark.parametrize("size", [1, 5, 20])
@pytest.mark.parametrize("count", [0, 4, 20, windows._BLOCK + 4, windows._BLOCK + 19, POINTS])
def test_blocks_change_no_window(size: int, count: int) -> None:
    values = VALUES[:count]
    np.testing.assert_array_equal(windows.trailing_median(values, size), plain(np.median, values, size))
    np.testing.assert_allclose(windows.trailing_mean(values, size), plain(np.mean, values, size), atol=1e-14)


def test_lines_are_those_of_least_squares_with_standard_errors() -> None:
    trend = windows.trailing_trend(STEPS, VALUES, 10)
    for i in (9, 300, windows._BLOCK + 8, windows._BLOCK + 9, POINTS - 1):
        (slope, level), covariance = np.polyfit(STEPS[i - 9 : i + 1] - STEPS[i], VALUES[i - 9 : i + 1], 1, cov=True)
        found = (trend.slope[i], trend.level[i], trend.error[i])
        np.testing.assert_allclose(found, (slope, level, np.sqrt(covariance[0, 0])), rtol=1e-9)
    assert np.isnan(trend.slope[:9]).all()


def test_a_run_that_grows_makes_its_past_windows_once() -> None:
    windows.trailing_median(VALUES, 20)
    before = windows._of_block.cache_info()
    grown = windows.trailing_median(np.append(VALUES, 0.5), 20)
    after = windows._of_block.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (2, 0)
    np.testing.assert_array_equal(grown[:-1], windows.trailing_median(VALUES, 20))


def test_common_steps() -> None:
    steps, (first, second) = windows.at_common_steps(
        Series(np.array([1, 2, 4, 7]), np.array([10.0, 20.0, 40.0, 70.0])),
        Series(np.array([2, 3, 7]), np.array([0.2, 0.3, 0.7])),
    )
    assert (steps.tolist(), first.tolist(), second.tolist()) == ([2, 7], [20.0, 70.0], [0.2, 0.7])

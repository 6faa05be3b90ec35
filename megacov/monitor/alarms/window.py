"""Trailing windows over the points of a tag, and episodes: from raised until cleared.

All of it is causal: the result at a point depends on that point and those before it, so that a run that is watched live
raises the same alarms as its files read afterwards. n: points; a window counts points, which are logged steps.

A run that is watched live asks for all windows at every step. Those of the past are the same each time, so they are
made block by block and remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from megacov.monitor.history import History, Series

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

_BLOCK = 512
"""Points whose windows are remembered together."""
_MOST_BLOCKS = 4096
"""Those of 50,000 logged steps of 40 windows, in some 40 MB; the ones beyond are made anew."""


def series_of(history: History, tag: str) -> Series:
    """The finite points of a tag; no points where the run does not log it."""
    found = history.scalars.get(tag)
    if found is None:
        return Series(np.empty(0, np.int64), np.empty(0))
    is_finite = np.isfinite(found.values)
    return Series(found.steps[is_finite], found.values[is_finite])


def at_common_steps(*tags: Series) -> tuple[NDArray[np.int64], list[Values]]:
    """Several tags at the steps that have all of them.

    Args:
        *tags: points of each.

    Returns:
        Steps [n], and the values [n] of each tag.
    """
    steps = tags[0].steps
    if all(np.array_equal(tag.steps, steps) for tag in tags):
        return steps, [tag.values for tag in tags]
    for tag in tags[1:]:
        steps = steps[np.isin(steps, tag.steps, assume_unique=True)]
    return steps, [tag.values[np.isin(tag.steps, steps, assume_unique=True)] for tag in tags]


def trailing_median(values: Values, window: int) -> Values:
    """Median of the last `window` values at each point; NaN at points with fewer."""
    return _at_points(_by_blocks(_medians, window, values)[0], len(values))


def _medians(values: Values) -> Values:
    return np.median(values, axis=1)[None]


def trailing_mean(values: Values | Flags, window: int) -> Values:
    """Mean of the last `window` values at each point; NaN at points with fewer. True counts as 1."""
    return _at_points(_by_blocks(_means, window, values.astype(np.float64))[0], len(values))


def _means(values: Values) -> Values:
    return np.mean(values, axis=1)[None]


def _by_blocks(function: Callable[..., Values], window: int, *columns: Values) -> Values:
    """Call a function of windows for all windows of some columns.

    Args:
        function: (the windows [m, window] of each column) -> [k, m].
        window: points of a window.
        *columns: [n] float64 each.

    Returns:
        [k, n - window + 1], or [k, 0].
    """
    count = max(0, len(columns[0]) - window + 1)
    whole = count - count % _BLOCK
    parts = [
        _of_block(function, window, *(column[start : start + _BLOCK + window - 1].tobytes() for column in columns))
        for start in range(0, whole, _BLOCK)
    ]
    return np.concatenate([*parts, function(*(_windows(column[whole:], window) for column in columns))], axis=1)


@lru_cache(maxsize=_MOST_BLOCKS)
def _of_block(function: Callable[..., Values], window: int, *contents: bytes) -> Values:
    return function(*(_windows(np.frombuffer(content), window) for content in contents))


def _windows(values: Values, window: int) -> Values:
    """The last `window` values at each point that has as many; [n - window + 1, window], or [0, window]."""
    return sliding_window_view(values, window) if len(values) >= window else np.empty((0, window))


def _at_points(results: Values, points: int) -> Values:
    """Results of windows, after a NaN for each point without a window."""
    return np.concatenate([np.full(points - len(results), np.nan), results])


def first_median(values: Values, points: int) -> float:
    """Median of the first points, at which a run is still itself; infinite where there are fewer."""
    return float(np.median(values[:points])) if len(values) >= points else np.inf


def before(values: Values, points: int) -> Values:
    """The value that stood `points` points earlier; NaN at the first ones."""
    return np.concatenate([np.full(min(points, len(values)), np.nan), values[: max(0, len(values) - points)]])


@dataclass(frozen=True, slots=True)
class Trend:
    """Lines fitted to the last points, one at each point; NaN at points with too few before them.

    Args:
        level: [n], the line at the point itself.
        slope: [n], per step.
        error: [n], standard error of the slope if the deviations are independent.
    """

    level: Values
    slope: Values
    error: Values

    @property
    def is_falling(self) -> Flags:
        """[n], whether the line falls by more than four standard errors."""
        return self.slope < -4.0 * self.error


def trailing_trend(steps: NDArray[np.int64], values: Values, window: int) -> Trend:
    """Least-squares line through the last `window` points at each point.

    Args:
        steps: [n], strictly increasing.
        values: [n].
        window: points of a window, at least 3.

    Returns:
        The lines.
    """
    lines = _by_blocks(_lines, window, steps.astype(np.float64), values)
    return Trend(*(_at_points(each, len(values)) for each in lines))


def _lines(x: Values, y: Values) -> Values:
    """Level, slope and error of the line through each window: [m, window] twice to [3, m]."""
    window = x.shape[1]
    x = x - x[:, -1:]
    x_mean, y_mean = x.mean(1, keepdims=True), y.mean(1, keepdims=True)
    spread = ((x - x_mean) ** 2).sum(1)
    slope = ((x - x_mean) * (y - y_mean)).sum(1) / spread
    level = y_mean[:, 0] - slope * x_mean[:, 0]
    residuals = y - (level[:, None] + slope[:, None] * x)
    error = np.sqrt((residuals**2).sum(1) / (window - 2) / spread)
    return np.stack([level, slope, error])


def held(flags: Flags, points: int) -> Flags:
    """Whether a condition holds at each point and has held for `points` points, this one included."""
    return np.asarray(trailing_mean(flags, points) == 1.0)


def episodes(is_raised: Flags, is_over: Flags) -> Iterator[tuple[int, int | None]]:
    """From the first point at which a condition is raised to the next at which it is over, again and again.

    Args:
        is_raised: [n].
        is_over: [n]; a point at which the condition is raised is not over.

    Yields:
        Index of the point that raises it, and of the one that ends it or None.
    """
    raising, ending = np.flatnonzero(is_raised), np.flatnonzero(is_over & ~is_raised)
    start = 0
    while (i := int(np.searchsorted(raising, start))) < len(raising):
        first = int(raising[i])
        j = int(np.searchsorted(ending, first))
        if j == len(ending):
            yield first, None
            return
        start = int(ending[j])
        yield first, start

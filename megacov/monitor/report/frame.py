"""The frame of a chart in SVG: from numbers to places, with axes that end at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from megacov.monitor.report.text import escape

WIDTH, HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 42
_MAX_POINTS = 600
"""Points of a line: about one a pixel. Where there are more, the lowest and the highest of each stretch are drawn."""

_LARGEST = 1e300
"""Values from here on are left out, like those that are not finite: a range of them is no longer a float."""


class Frame:
    """One chart's axes, and shapes inside them. Values that are not finite, or beyond 1e300, are left out."""

    def __init__(self, xs: Iterable[float], ys: Iterable[float], *, x_label: str, y_label: str) -> None:
        """Make axes that hold all points.

        Args:
            xs: values that the horizontal axis must hold.
            ys: values that the vertical axis must hold.
            x_label: name and unit of the horizontal axis.
            y_label: name and unit of the vertical axis.
        """
        self._x_ticks, self._y_ticks = round_ticks(xs, most=8), round_ticks(ys, most=6)
        self._x_label, self._y_label = x_label, y_label

    def axes(self) -> str:
        """Grid, numbers and labels."""
        parts = []
        for value, name in zip(self._y_ticks, tick_names(self._y_ticks), strict=True):
            y = self._y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
        for value, name in zip(self._x_ticks, tick_names(self._x_ticks), strict=True):
            x = self._x(value)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{name}</text>')
        middle = (_TOP + HEIGHT - _BOTTOM) / 2
        parts.append(
            f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(self._x_label)}'
            f'</text><text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
            f"{escape(self._y_label)}</text>"
        )
        return "".join(parts)

    def line(self, xs: NDArray[np.float64], ys: NDArray[np.float64], css: str) -> str:
        """A line that breaks where a value cannot be drawn; a single point is a dot.

        Args:
            xs: [n] in rising order.
            ys: [n].
            css: class of the line.

        Returns:
            SVG.
        """
        parts, dots = [], []
        for piece in _drawn_pieces(xs, ys):
            thin_xs, thin_ys = _thin(xs[piece], ys[piece])
            if len(thin_xs) == 1:
                dots.append(
                    f'<circle class="{css}" cx="{self._x(thin_xs[0]):.1f}" cy="{self._y(thin_ys[0]):.1f}" r="3"/>'
                )
            else:
                places = (f"{self._x(x):.1f} {self._y(y):.1f}" for x, y in zip(thin_xs, thin_ys, strict=True))
                parts.append("M" + "L".join(places))
        path = f'<path class="{css}" d="{"".join(parts)}"/>' if parts else ""
        return path + "".join(dots)

    def band(self, xs: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], css: str) -> str:
        """The area between two lines, [n] each and finite."""
        there = [f"{self._x(x):.1f} {self._y(y):.1f}" for x, y in zip(xs, high, strict=True)]
        back = [f"{self._x(x):.1f} {self._y(y):.1f}" for x, y in zip(xs[::-1], low[::-1], strict=True)]
        return f'<path class="{css}" d="M{"L".join([*there, *back])}Z"/>'

    def dots(self, xs: NDArray[np.float64], ys: NDArray[np.float64], css: str) -> str:
        """A dot for each point that can be drawn."""
        return "".join(
            f'<circle class="{css}" cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="2.5"/>'
            for x, y in zip(xs, ys, strict=True)
            if abs(x) < _LARGEST and abs(y) < _LARGEST
        )

    def level(self, y: float, css: str) -> str:
        """A horizontal line through the whole frame."""
        place = f"{self._y(y):.1f}"
        return f'<line class="{css}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place}" y2="{place}"/>'

    def _x(self, value: float) -> float:
        low, high = self._x_ticks[0], self._x_ticks[-1]
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        low, high = self._y_ticks[0], self._y_ticks[-1]
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


def round_ticks(values: Iterable[float], *, most: int) -> list[float]:
    """Round numbers at equal distances, from at or below the lowest value to at or above the highest.

    Args:
        values: what the axis must hold; [0, 1] where nothing can be drawn.
        most: largest number of distances, at least 2.

    Returns:
        At least two numbers, rising.
    """
    drawn = [float(value) for value in values if abs(value) < _LARGEST]
    low, high = (min(drawn), max(drawn)) if drawn else (0.0, 1.0)
    # Wide enough that neighbouring ticks are different floats.
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-200):
        margin = abs(low) / 10 if abs(low) > 1e-190 else 0.5
        low, high = low - margin, high + margin
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        first, last = math.floor(low / (step * factor)), math.ceil(high / (step * factor))
        if last - first <= most:
            return [place * (step * factor) for place in range(first, last + 1)]
    raise AssertionError("twenty times a power of ten below a range covers it in few steps")


def tick_names(ticks: Sequence[float]) -> list[str]:
    """Equally spaced numbers as text, with just enough digits to tell them apart."""
    step, largest = ticks[1] - ticks[0], max(abs(ticks[0]), abs(ticks[-1]))
    if step > 1e-5 and largest < 1e7:
        decimals = max(0, math.ceil(-math.log10(step) - 1e-9))
        return [f"{value + 0.0:,.{decimals}f}" for value in ticks]
    digits = max(1, math.ceil(math.log10(largest / step)) + 1)
    return [f"{0.0 if abs(value) < step / 2 else value:.{digits}g}" for value in ticks]


def _drawn_pieces(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> Iterator[slice]:
    """Stretches in which every point can be drawn."""
    is_drawn = _can_draw(xs) & _can_draw(ys)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_drawn.astype(np.int8), [0]])))
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        yield slice(int(begin), int(end))


def _can_draw(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.abs(values) < _LARGEST  # False for NaN


def _thin(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Few enough points to draw, with every peak among them."""
    if len(xs) <= _MAX_POINTS:
        return xs, ys
    kept = {0, len(xs) - 1}
    for part in np.array_split(np.arange(len(xs)), _MAX_POINTS // 2):
        kept |= {int(part[np.argmin(ys[part])]), int(part[np.argmax(ys[part])])}
    order = sorted(kept)
    return xs[order], ys[order]

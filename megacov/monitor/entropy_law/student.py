"""Student's t, exact for whole degrees of freedom, and mixtures of it, without a library for statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LIKE_NORMAL = 1000
"""Degrees of freedom from which more make no difference in the third digit."""


def t_quantile(dof: int, coverage: float = 0.95) -> float:
    """The t such that a variable with Student's distribution lies in [-t, t] with probability `coverage`.

    Args:
        dof: degrees of freedom, at least 1.
        coverage: probability between 0 and 1.

    Returns:
        The quantile, to about 12 digits.
    """
    return _quantile(min(dof, _LIKE_NORMAL), coverage)


@cache
def _quantile(dof: int, coverage: float) -> float:
    low, high = 0.0, 1.0
    while t_coverage(high, dof) < coverage:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_coverage(middle, dof) < coverage else (low, middle)
    return high


def t_coverage(t: float, dof: int) -> float:
    """Probability that a variable with Student's distribution lies in [-t, t].

    The finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4.

    Args:
        t: at least 0.
        dof: degrees of freedom, at least 1; more than 1000 count as 1000.

    Returns:
        The probability.
    """
    dof = min(dof, _LIKE_NORMAL)
    angle = math.atan(t / math.sqrt(dof))
    cosine = math.cos(angle)
    first = 2 if dof % 2 else 1
    term = total = (cosine if first == 2 else 1.0) if dof > 1 else 0.0
    for k in range(first, dof - 2, 2):
        term *= cosine * cosine * k / (k + 1)
        total += term
    if dof % 2:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


@dataclass(frozen=True, slots=True, eq=False)
class StudentMixture:
    """A distribution that mixes Student's t of several places and scales.

    weights: [r], above 0, with sum 1.
    means: [r].
    scales: [r], above 0.
    dof: degrees of freedom of all of them, at least 2.
    """

    weights: Floats
    means: Floats
    scales: Floats
    dof: int

    def below(self, x: Floats) -> Floats:
        """Probability of a value below x, to 1e-4 with 4 degrees of freedom and to 1e-6 from 12. [n] to [n]."""
        t = (x[:, None] - self.means) / self.scales
        # The normal variable of equal probability (Hill, Communications of the ACM 13, 1970, algorithm 395). The exact
        # sum has a term for every second degree of freedom.
        a = self.dof - 0.5
        y = a * np.log1p(t * t / self.dof)
        z = np.sqrt(y / 2) * (1 + (y + 3) / (48 * a * a))
        tails = np.array([math.erfc(each) for each in z.flat]).reshape(z.shape) / 2
        return np.where(t < 0, tails, 1 - tails) @ self.weights

    def interval(self, coverage: float = 0.95) -> tuple[float, float]:
        """Ends of the interval that leaves the same probability on each side.

        Args:
            coverage: probability inside of it.

        Returns:
            Both ends, to about 9 digits of the width.
        """
        shares = np.array([(1 - coverage) / 2, (1 + coverage) / 2])
        reach = t_quantile(self.dof, coverage) * self.scales
        each = np.stack([self.means - reach, self.means + reach])  # [2, r]; an end lies among those of the parts
        low, high = each.min(axis=1), each.max(axis=1)
        exact = 1e-10 * float(high[1] - low[0])
        x = each @ self.weights
        for _ in range(60):
            gap = self.below(x) - shares
            low, high = np.where(gap > 0, low, x), np.where(gap > 0, x, high)
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # no density between far parts
                newton = x - gap / self._density(x)
            moved = np.where((low <= newton) & (newton <= high), newton, (low + high) / 2)
            if np.abs(moved - x).max() <= exact:
                break
            x = moved
        return float(moved[0]), float(moved[1])

    def _density(self, x: Floats) -> Floats:
        t = (x[:, None] - self.means) / self.scales
        half = (self.dof + 1) / 2
        top = math.exp(math.lgamma(half) - math.lgamma(self.dof / 2)) / math.sqrt(math.pi * self.dof)
        return top * (np.exp(-half * np.log1p(t * t / self.dof)) / self.scales) @ self.weights

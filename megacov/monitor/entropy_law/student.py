"""Quantiles of Student's t, exact for whole degrees of freedom, without a library for statistics."""

from __future__ import annotations

import math
from functools import cache

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

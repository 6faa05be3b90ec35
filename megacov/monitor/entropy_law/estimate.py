"""The two coefficients of R = -a exp(H) + b, with a covariance that is honest where errors of neighbouring steps are alike.

Rewards of neighbouring steps err together: the same prompts come back, and the policy drifts. Plain least squares takes
each step for new evidence, and its 95 % intervals then hold the truth in 60 % of cases (correlation 0.7). Here errors are
a first-order autoregression, u_t = rho u_(t-1) + e_t. For each rho of a grid the coefficients follow by generalised least
squares, and the answers are averaged with the restricted likelihood of rho as weight, so that not knowing rho widens the
intervals as well. `benchmarks/entropy_law.py` measures their coverage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacov.monitor.entropy_law.student import t_quantile

Floats = NDArray[np.float64]

_RHOS = np.linspace(-0.5, 0.98, 75)
"""Correlations of neighbouring errors that are tried. The last is below 1, where a ceiling cannot be told from drift."""
_RELATIVE_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval that holds the true value in 95 % of cases."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Coefficients of a curve.

    a, b: of R = -a exp(H) + b.
    covariance: [2, 2], of the errors of a and b.
    autocorrelation: rho, the correlation of the errors of neighbouring steps: its mean by the restricted likelihood.
    dof: points less the two coefficients.
    """

    a: float
    b: float
    covariance: Floats
    autocorrelation: float
    dof: int

    @property
    def ceiling(self) -> float:
        """b - a, the reward at entropy 0."""
        return self.b - self.a

    def predict(self, entropies: Floats) -> Floats:
        """The curve's reward at each entropy. [n] nats to [n]."""
        return self.b - self.a * np.exp(entropies)

    def standard_error(self, of_a: float, of_b: float) -> float:
        """Standard error of of_a * a + of_b * b."""
        weights = np.array([of_a, of_b])
        return math.sqrt(max(float(weights @ self.covariance @ weights), 0.0))

    def interval(self, of_a: float, of_b: float) -> Interval:
        """95 % interval of of_a * a + of_b * b."""
        middle, half = of_a * self.a + of_b * self.b, t_quantile(self.dof) * self.standard_error(of_a, of_b)
        return Interval(middle - half, middle + half)


def estimate(entropies: Floats, rewards: Floats) -> Estimate:
    """Fit the curve to the points of one run.

    Args:
        entropies: [n] finite, in nats, in the order of the steps, which are taken as equally far apart; not all equal.
        rewards: [n] finite.

    Returns:
        The coefficients.

    Raises:
        ValueError: there are fewer than 4 points, or all entropies are equal.
    """
    falls, centre = -np.exp(entropies), float(np.mean(rewards))
    if len(falls) < 4 or np.ptp(falls) <= _RELATIVE_ROUNDING * np.abs(falls).max():
        raise ValueError("a curve needs 4 points, and entropies that differ")
    shift = float(np.mean(falls))  # centred columns keep all digits where the entropies differ little
    x, y, one = falls - shift, rewards - centre, np.ones(len(falls))
    first = float(x @ y) / float(x @ x)
    left = y - first * x  # what plain least squares leaves; the rest corrects it
    xx, xo, oo, xl, ol, ll = (
        _whitened_product(*pair) for pair in ((x, x), (x, one), (one, one), (x, left), (one, left), (left, left))
    )
    determinant = xx * oo - xo * xo
    slopes, levels = (oo * xl - xo * ol) / determinant, (xx * ol - xo * xl) / determinant
    dof = len(falls) - 2
    floor = len(y) * (_RELATIVE_ROUNDING * max(float(np.abs(rewards).max()), 1e-300)) ** 2
    variances = np.maximum(ll - slopes * xl - levels * ol, floor) / dof
    log_weights = 0.5 * (np.log1p(-_RHOS * _RHOS) - np.log(determinant) - dof * np.log(variances))
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    slope, level = float(weights @ slopes), float(weights @ levels)
    within = np.array([[oo, -xo], [-xo, xx]]) * (weights * variances / determinant)
    apart = np.array([slopes - slope, levels - level])
    centred = within.sum(axis=2) + (apart * weights) @ apart.T
    to_plain = np.array([[1.0, 0.0], [-shift, 1.0]])  # b = level + centre - shift * a
    a = first + slope
    return Estimate(
        a=a,
        b=level + centre - shift * a,
        covariance=to_plain @ centred @ to_plain.T,
        autocorrelation=float(weights @ _RHOS),
        dof=dof,
    )


def whiten(values: Floats, rho: float) -> Floats:
    """Independent errors in place of autoregressive ones: values[t] - rho values[t-1], and the first one scaled."""
    return np.concatenate([values[:1] * math.sqrt(1 - rho * rho), values[1:] - rho * values[:-1]])


def _whitened_product(left: Floats, right: Floats) -> Floats:
    """The dot product of both columns after `whiten`, for each rho of the grid: [number of rhos]."""
    same = float(left[1:] @ right[1:])
    crossed = float(left[1:] @ right[:-1] + left[:-1] @ right[1:])
    before = float(left[:-1] @ right[:-1])
    return (1 - _RHOS * _RHOS) * left[0] * right[0] + same - _RHOS * crossed + _RHOS * _RHOS * before

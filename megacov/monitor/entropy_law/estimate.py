"""The coefficients of R = -a exp(H) + b, with a covariance that is honest where errors of neighbouring steps are alike.

Rewards of neighbouring steps err together: the same prompts come back, and the policy drifts. Plain least squares takes
each step for new evidence, and at a correlation of 0.7 its 95 % intervals hold the truth in 60 % of cases. Here errors
are a first-order autoregression, u_t = rho u_(t-1) + e_t. For each rho of a grid the coefficients follow by generalised
least squares, and the answers are averaged with the restricted likelihood of rho as weight, so that not knowing rho
widens the intervals as well. `benchmarks/entropy_law.py` measures their coverage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacov.monitor.entropy_law.student import t_coverage, t_quantile

Floats = NDArray[np.float64]

_RHOS = np.linspace(-0.5, 0.98, 75)
"""Correlations of neighbouring errors that are tried. At 1 a ceiling could not be told from drift."""
_RELATIVE_ROUNDING = 1e-12
_LEAST_CURVED = 1e-6
"""Singular value of the columns of the curve below which their products hold no digit of its curvature."""


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
    falls = _check(-np.exp(entropies))
    shift, span, centre = float(np.mean(falls)), float(np.ptp(falls)), float(np.mean(rewards))
    x = (falls - shift) / span  # centred, they keep all digits where the entropies differ little
    found = average_over_rho(np.stack([x, np.ones(len(x))], axis=1), rewards - centre)
    to_plain = np.array([[1 / span, 0.0], [-shift / span, 1.0]])  # b is the level at exp(H) = 0
    a, b = to_plain @ found.coefficients
    return Estimate(
        a=float(a),
        b=float(b) + centre,
        covariance=to_plain @ found.covariance @ to_plain.T,
        autocorrelation=found.autocorrelation,
        dof=len(x) - 2,
    )


def curvature_p(entropies: Floats, rewards: Floats) -> float:
    """Test whether reward over exp(H) is a straight line, as the law has it.

    Args:
        entropies: [n] finite, in nats; not all equal.
        rewards: [n] finite.

    Returns:
        Probability of so large a coefficient of exp(H)^2 where the true one is 0; 1 with fewer than 8 points, or where
        the points lie at two entropies, but for rounding.
    """
    falls = _check(-np.exp(entropies))
    x = (falls - falls.mean()) / np.ptp(falls)
    columns = np.stack([x, np.ones(len(x)), x * x - np.mean(x * x)], axis=1)
    if len(x) < 8 or np.linalg.matrix_rank(columns, tol=_LEAST_CURVED) < columns.shape[1]:
        return 1.0
    found = average_over_rho(columns, rewards - np.mean(rewards))
    error = math.sqrt(found.covariance[2, 2])
    return 1 - t_coverage(abs(float(found.coefficients[2])) / error, len(x) - 3) if error > 0 else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Averaged:
    """Coefficients of any linear model, averaged over rho: [k], [k, k], and the mean of rho."""

    coefficients: Floats
    covariance: Floats
    autocorrelation: float


def average_over_rho(columns: Floats, values: Floats) -> Averaged:
    """Generalised least squares for each rho, averaged by the restricted likelihood of rho.

    Args:
        columns: [n, k], independent and of similar size.
        values: [n].

    Returns:
        The means of the coefficients; their covariance is the mean of those at each rho, plus that of the means.
    """
    dof = len(values) - columns.shape[1]
    start = np.linalg.lstsq(columns, values, rcond=None)[0]
    left = values - columns @ start  # small numbers, so that no digits cancel
    information, crossed, squares = (
        _whitened_products(*pair)
        for pair in ((columns, columns), (columns, left[:, None]), (left[:, None], left[:, None]))
    )
    inverses = np.linalg.inv(information)  # [rhos, k, k]
    changes = (inverses @ crossed)[..., 0]
    floor = len(values) * (_RELATIVE_ROUNDING * max(float(np.abs(values).max()), 1e-100)) ** 2
    variances = np.maximum(squares[:, 0, 0] - np.sum(changes * crossed[..., 0], axis=1), floor) / dof
    log_determinants = np.linalg.slogdet(information)[1]
    log_weights = 0.5 * (np.log1p(-_RHOS * _RHOS) - log_determinants - dof * np.log(variances))
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    mean = weights @ changes
    apart = changes - mean
    return Averaged(
        coefficients=start + mean,
        covariance=np.tensordot(weights * variances, inverses, axes=1) + (apart.T * weights) @ apart,
        autocorrelation=float(weights @ _RHOS),
    )


def whiten(values: Floats, rho: float) -> Floats:
    """Independent errors in place of autoregressive ones: values[t] - rho values[t-1], and the first one scaled."""
    return np.concatenate([values[:1] * math.sqrt(1 - rho * rho), values[1:] - rho * values[:-1]])


def _check(falls: Floats) -> Floats:
    if len(falls) < 4 or np.ptp(falls) <= _RELATIVE_ROUNDING * np.abs(falls).max():
        raise ValueError("a curve needs 4 points, and entropies that differ")
    return falls


def _whitened_products(left: Floats, right: Floats) -> Floats:
    """Products of all columns after `whiten`, for each rho of the grid: [n, i] and [n, j] to [rhos, i, j]."""
    rho = _RHOS[:, None, None]
    first = np.outer(left[0], right[0])
    same, before = left[1:].T @ right[1:], left[:-1].T @ right[:-1]
    crossed = left[1:].T @ right[:-1] + left[:-1].T @ right[1:]
    return (1 - rho * rho) * first + same - rho * crossed + rho * rho * before

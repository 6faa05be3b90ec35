"""The coefficients of R = -a exp(H) + b, with intervals that are honest where errors of neighbouring steps are alike.

Rewards of neighbouring steps err together: the same prompts come back, and the policy drifts. Plain least squares takes
each step for new evidence, and at a correlation of 0.7 its 95 % intervals hold the truth in 60 % of cases. Here errors
are a first-order autoregression, u_t = rho u_(t-1) + e_t. If rho were known, a coefficient would be distributed as
Student's t around the answer of generalised least squares. As it is not, the t distributions of a grid of rho are
mixed, each with the restricted likelihood of its rho times a prior as weight, and an interval is that of the mixture:
where a rho near 1 cannot be excluded, its long tails count. `benchmarks/entropy_law.py` measures the coverage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacov.monitor.entropy_law.student import StudentMixture

Floats = NDArray[np.float64]

_RHOS = np.tanh(np.linspace(math.atanh(-0.5), math.atanh(0.995), 75))
"""Correlations of neighbouring errors that are tried, closer together near 1, where they matter more. At 1 a ceiling
could not be told from drift."""
_PRIOR_POWER = -0.3
"""The prior of rho is (1 - rho^2) to this power, between the even one, 0, and Jeffreys', -1/2. In simulation, intervals
are too narrow at a correlation of 0.9 with the first, and too wide at 0.8 with the second."""
_SMALLEST_WEIGHT = 1e-9
_RELATIVE_ROUNDING = 1e-12
_LEAST_CURVED = 1e-6
"""Singular value of the columns of the curve below which their products hold no digit of its curvature."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval that holds the true value in 95 % of cases."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Coefficients of any linear model: Student's t of several dimensions for each rho.

    rhos: [r], correlations of neighbouring errors that count.
    weights: [r], with sum 1.
    means: [r, k].
    scales: [r, k, k], squared: the covariance of a t distribution is dof / (dof - 2) times that.
    dof: points less coefficients.
    """

    rhos: Floats
    weights: Floats
    means: Floats
    scales: Floats
    dof: int

    @property
    def mean(self) -> Floats:
        """[k]."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Floats:
        """[k, k]: the mean of the squared scales, and the covariance of the means."""
        apart = self.means - self.mean
        return np.tensordot(self.weights, self.scales, axes=1) + (apart.T * self.weights) @ apart

    def transformed(self, matrix: Floats, shift: Floats) -> Mixture:
        """That of matrix @ coefficients + shift. [j, k], [j]."""
        means, scales = self.means @ matrix.T + shift, matrix @ self.scales @ matrix.T
        return Mixture(self.rhos, self.weights, means, scales, self.dof)

    def along(self, direction: Floats) -> StudentMixture:
        """Distribution of direction @ coefficients. [k]."""
        squares = np.maximum(self.scales @ direction @ direction, np.finfo(np.float64).tiny)
        return StudentMixture(self.weights, self.means @ direction, np.sqrt(squares), self.dof)


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Coefficients of a curve.

    a, b: of R = -a exp(H) + b, the means of their distribution.
    covariance: [2, 2], of the errors of a and b.
    autocorrelation: rho, the correlation of the errors of neighbouring steps: its mean.
    mixture: joint distribution of a and b.
    """

    a: float
    b: float
    covariance: Floats
    autocorrelation: float
    mixture: Mixture

    @property
    def ceiling(self) -> float:
        """b - a, the reward at entropy 0."""
        return self.b - self.a

    @property
    def dof(self) -> int:
        """Points less the two coefficients."""
        return self.mixture.dof

    def predict(self, entropies: Floats) -> Floats:
        """The curve's reward at each entropy. [n] nats to [n]."""
        return self.b - self.a * np.exp(entropies)

    def interval(self, of_a: float, of_b: float) -> Interval:
        """95 % interval of of_a * a + of_b * b."""
        return Interval(*self.mixture.along(np.array([of_a, of_b])).interval())


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
    found = mix_over_rho(np.stack([x, np.ones(len(x))], axis=1), rewards - centre)
    to_plain = np.array([[1 / span, 0.0], [-shift / span, 1.0]])  # b is the level at exp(H) = 0
    mixture = found.transformed(to_plain, np.array([0.0, centre]))
    a, b = mixture.mean
    return Estimate(
        a=float(a),
        b=float(b),
        covariance=to_plain @ found.covariance @ to_plain.T,
        autocorrelation=float(found.weights @ found.rhos),
        mixture=mixture,
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
    found = mix_over_rho(columns, rewards - np.mean(rewards)).along(np.array([0.0, 0.0, 1.0]))
    below = float(found.below(np.zeros(1))[0])
    return 2 * min(below, 1 - below)


def mix_over_rho(columns: Floats, values: Floats) -> Mixture:
    """Generalised least squares for each rho, weighted by the restricted likelihood of rho and its prior.

    Args:
        columns: [n, k], independent and of similar size.
        values: [n].

    Returns:
        The distribution of the coefficients, without the correlations that hardly weigh anything.
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
    # 1/2 is the likelihood's; 1 is the distance between neighbours on the grid, which is even in atanh(rho).
    log_weights = (0.5 + _PRIOR_POWER + 1) * np.log1p(-_RHOS * _RHOS) - 0.5 * (
        log_determinants + dof * np.log(variances)
    )
    weights = np.exp(log_weights - log_weights.max())
    counts = weights > _SMALLEST_WEIGHT
    return Mixture(
        rhos=_RHOS[counts],
        weights=weights[counts] / weights[counts].sum(),
        means=start + changes[counts],
        scales=(variances[:, None, None] * inverses)[counts],
        dof=dof,
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

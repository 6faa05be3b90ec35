"""Whether one curve fits all of a run: the residuals, and how much single steps and stretches of the run matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from megacov.monitor.entropy_law.estimate import Estimate, Floats, curvature_p, estimate, whiten

BLOCKS = 10
"""Stretches of equal length that are left out in turn."""
_FEWEST_IN_HALF = 10


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Part of a run that moves the ceiling most if it is left out.

    first, last: indices of its first and last point.
    ceiling: ceiling without it.
    change: that, minus the ceiling with it.
    """

    first: int
    last: int
    ceiling: float
    change: float


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Checks of a fit.

    autocorrelation: correlation of the residuals of neighbouring steps, as the fit estimates it.
    num_runs, expected_runs: stretches of residuals of one sign, counted and expected, after the autocorrelation is
        taken out of them.
    runs_p: probability of so few or so many runs where the curve is right (Wald and Wolfowitz).
    curvature_p: probability of so much curvature of reward over exp(H) where the law's straight line is right.
    halves_p: probability that the halves of the run differ so much in their curves where one curve is right for both;
        None where a half has too few points, or one entropy only.
    one_left_out: the point that matters most.
    block_left_out: the tenth of the run that matters most.
    """

    autocorrelation: float
    num_runs: int
    expected_runs: float
    runs_p: float
    curvature_p: float
    halves_p: float | None
    one_left_out: LeftOut
    block_left_out: LeftOut


def diagnose(entropies: Floats, rewards: Floats, fitted: Estimate) -> Diagnostics:
    """Check a fit against its points.

    Args:
        entropies: [n] finite, in nats.
        rewards: [n] finite.
        fitted: the fit to these points.

    Returns:
        The checks.
    """
    rho = fitted.autocorrelation
    columns = np.stack([whiten(-np.exp(entropies), rho), whiten(np.ones(len(entropies)), rho)], axis=1)
    answers = whiten(rewards, rho)
    residuals = answers - columns @ np.array([fitted.a, fitted.b])
    num_runs, expected, runs_p = runs_test(residuals)
    return Diagnostics(
        autocorrelation=rho,
        num_runs=num_runs,
        expected_runs=expected,
        runs_p=runs_p,
        curvature_p=curvature_p(entropies, rewards),
        halves_p=_compare_halves(entropies, rewards),
        one_left_out=_leave_out(columns, answers, num_parts=len(answers)),
        block_left_out=_leave_out(columns, answers, num_parts=min(BLOCKS, len(answers))),
    )


def runs_test(residuals: Floats) -> tuple[int, float, float]:
    """Test whether signs follow each other by chance.

    Args:
        residuals: [n], in order.

    Returns:
        Number of runs of one sign, their expected number, and the two-sided p of the normal approximation, which is 1
        where all signs are equal.
    """
    signs = residuals > 0
    above, n = int(signs.sum()), len(signs)
    below = n - above
    num_runs = 1 + int(np.count_nonzero(signs[1:] != signs[:-1]))
    expected = 1 + 2 * above * below / n
    variance = 2 * above * below * (2 * above * below - n) / (n * n * (n - 1))
    if variance <= 0:
        return num_runs, expected, 1.0
    return num_runs, expected, math.erfc(abs(num_runs - expected) / math.sqrt(2 * variance))


def _leave_out(columns: Floats, answers: Floats, *, num_parts: int) -> LeftOut:
    """Leave out each part in turn, at a fixed autocorrelation, and keep the one that moves the ceiling most."""
    edges = np.linspace(0, len(answers), num_parts + 1).astype(int)
    starts = edges[:-1]
    products = columns[:, :, None] * columns[:, None, :]
    whole, whole_side = columns.T @ columns, columns.T @ answers
    squares = whole - np.add.reduceat(products, starts)  # [parts, 2, 2], without each part
    crossed = columns * answers[:, None]
    sides = whole_side - np.add.reduceat(crossed, starts)
    everything = _ceiling(whole[None], whole_side[None])[0]
    ceilings = _ceiling(squares, sides)
    changes = np.abs(ceilings - everything)
    worst = int(np.nanargmax(np.where(np.isfinite(changes), changes, -1.0)))
    return LeftOut(
        first=int(edges[worst]),
        last=int(edges[worst + 1]) - 1,
        ceiling=float(ceilings[worst]),
        change=float(ceilings[worst] - everything),
    )


def _ceiling(squares: Floats, sides: Floats) -> Floats:
    """b - a of least squares with the normal equations [parts, 2, 2] and [parts, 2]; NaN where they have no answer."""
    determinants = squares[:, 0, 0] * squares[:, 1, 1] - squares[:, 0, 1] ** 2
    is_solvable = determinants > 1e-14 * squares[:, 0, 0] * squares[:, 1, 1]
    safe = np.where(is_solvable, determinants, 1.0)
    a = (squares[:, 1, 1] * sides[:, 0] - squares[:, 0, 1] * sides[:, 1]) / safe
    b = (squares[:, 0, 0] * sides[:, 1] - squares[:, 0, 1] * sides[:, 0]) / safe
    return np.where(is_solvable, b - a, np.nan)


def _compare_halves(entropies: Floats, rewards: Floats) -> float | None:
    """Wald's test that both halves have the same a and b, each with its own covariance; F with 2 degrees of freedom."""
    middle = len(entropies) // 2
    if middle < _FEWEST_IN_HALF:
        return None
    try:
        early, late = (estimate(entropies[part], rewards[part]) for part in (slice(middle), slice(middle, None)))
        apart = np.array([early.a - late.a, early.b - late.b])
        statistic = float(apart @ np.linalg.solve(early.covariance + late.covariance, apart)) / 2
    except (ValueError, np.linalg.LinAlgError):
        return None
    dof = min(early.dof, late.dof)
    return (1 + 2 * max(statistic, 0.0) / dof) ** (-dof / 2)

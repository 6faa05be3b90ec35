"""The fit against generalised least squares with whole covariance matrices, and against an integral, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.entropy_law import autoregression
from megacov.monitor.entropy_law.estimate import _PRIOR_POWER, _RHOS, estimate, whiten


def curve(num_points: int, *, noise: float = 0.02, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    entropies = 0.05 + 1.2 * np.exp(-4 * np.linspace(0, 1, num_points))
    rewards = 0.7 - 0.22 * np.exp(entropies) + noise * np.random.default_rng(seed).standard_normal(num_points)
    return entropies, rewards


def correlations(num_points: int, rho: float) -> np.ndarray:
    return rho ** np.abs(np.subtract.outer(np.arange(num_points), np.arange(num_points))) / (1 - rho**2)


def reference(entropies: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Means and covariance of (a, b), and the mean of rho: whole matrices, one rho at a time."""
    n = len(rewards)
    columns = np.stack([-np.exp(entropies), np.ones(n)], axis=1)
    log_weights, means, covariances = [], [], []
    for rho in _RHOS:
        noise = correlations(n, rho)
        inverse = np.linalg.inv(noise)
        information = columns.T @ inverse @ columns
        solution = np.linalg.solve(information, columns.T @ inverse @ rewards)
        residuals = rewards - columns @ solution
        variance = residuals @ inverse @ residuals / (n - 2)
        log_weights.append(
            (1 + _PRIOR_POWER) * np.log(1 - rho**2)
            - 0.5 * np.linalg.slogdet(noise)[1]
            - 0.5 * np.linalg.slogdet(information)[1]
            - 0.5 * (n - 2) * np.log(variance)
        )
        means.append(solution)
        covariances.append(variance * np.linalg.inv(information))
    weights = np.exp(np.array(log_weights) - max(log_weights))
    weights /= weights.sum()
    mean = weights @ np.array(means)
    apart = np.array(means) - mean
    covariance = np.einsum("r,rij->ij", weights, np.array(covariances)) + np.einsum(
        "r,ri,rj->ij", weights, apart, apart
    )
    return mean, covariance, float(weights @ _RHOS)


@pytest.mark.parametrize(("num_points", "noise", "seed"), [(20, 0.02, 0), (70, 0.02, 1), (70, 1e-4, 2)])
def test_it_is_generalised_least_squares_averaged_over_rho(num_points, noise, seed):
    entropies, rewards = curve(num_points, noise=noise, seed=seed)
    fitted = estimate(entropies, rewards)
    mean, covariance, rho = reference(entropies, rewards)
    assert [fitted.a, fitted.b] == pytest.approx(mean, rel=1e-7)
    assert fitted.covariance == pytest.approx(covariance, rel=1e-5)
    assert fitted.autocorrelation == pytest.approx(rho, abs=1e-6)
    assert fitted.dof == num_points - 2


def integrated_tails(entropies, rewards, direction, ends) -> np.ndarray:
    """Probabilities below and above the ends: an integral over rho and sigma, with normal errors, on a fine grid."""
    n = len(rewards)
    columns = np.stack([-np.exp(entropies), np.ones(n)], axis=1)
    edges = np.linspace(np.arctanh(_RHOS[0]), np.arctanh(_RHOS[-1]), 401)
    log_sigmas = np.linspace(np.log(0.003), np.log(0.3), 300)[:, None]
    log_weights, below = [], []
    for rho in np.tanh((edges[1:] + edges[:-1]) / 2):
        noise = correlations(n, rho)
        inverse = np.linalg.inv(noise)
        information = columns.T @ inverse @ columns
        solution = np.linalg.solve(information, columns.T @ inverse @ rewards)
        residuals = rewards - columns @ solution
        log_weights.append(
            (1 + _PRIOR_POWER) * np.log(1 - rho**2)
            - 0.5 * (np.linalg.slogdet(noise)[1] + np.linalg.slogdet(information)[1])
            - (n - 2) * log_sigmas
            - residuals @ inverse @ residuals / (2 * np.exp(2 * log_sigmas))
        )
        errors = np.exp(log_sigmas) * np.sqrt(direction @ np.linalg.solve(information, direction))
        z = (np.array(ends) - direction @ solution) / errors
        below.append(np.array([math.erfc(-each / math.sqrt(2)) / 2 for each in z.flat]).reshape(z.shape))
    weights = np.exp(np.array(log_weights) - np.max(log_weights))
    low, high = np.sum(weights * np.array(below), axis=(0, 1)) / weights.sum()
    return np.array([low, 1 - high])


@pytest.mark.parametrize(("rho", "direction"), [(0.0, (1.0, 0.0)), (0.9, (1.0, 0.0)), (0.9, (-1.0, 1.0))])
def test_an_interval_leaves_a_fortieth_of_the_integrated_probability_on_either_side(rho, direction):
    entropies, rewards = curve(40, noise=0)
    rewards += 0.02 * autoregression(40, 1, rho, np.random.default_rng(4))[0]
    interval = estimate(entropies, rewards).interval(*direction)
    tails = integrated_tails(entropies, rewards, np.array(direction), (interval.low, interval.high))
    assert tails == pytest.approx([0.025, 0.025], abs=5e-4)


def test_a_curve_without_noise_is_recovered():
    entropies, rewards = curve(50, noise=0)
    fitted = estimate(entropies, rewards)
    assert (fitted.a, fitted.b, fitted.ceiling) == pytest.approx((0.22, 0.7, 0.48), abs=1e-12)
    interval = fitted.interval(-1, 1)
    assert interval.low <= 0.48 <= interval.high and interval.high - interval.low < 1e-10


def test_units_of_the_reward_change_nothing_else():
    entropies, rewards = curve(60)
    fitted, scaled = estimate(entropies, rewards), estimate(entropies, 100 * rewards - 30)
    assert scaled.a == pytest.approx(100 * fitted.a)
    assert scaled.b == pytest.approx(100 * fitted.b - 30)
    assert scaled.covariance == pytest.approx(1e4 * fitted.covariance)
    assert scaled.autocorrelation == pytest.approx(fitted.autocorrelation)


def test_entropies_that_differ_little_keep_their_digits():
    entropies, _ = curve(60)
    entropies = 2 + 1e-6 * entropies
    fitted = estimate(entropies, 5 - 3 * np.exp(entropies))
    assert fitted.a == pytest.approx(3, rel=1e-6)


def test_whitened_errors_are_independent():
    noise = np.random.default_rng(0).standard_normal(4000)
    for t in range(1, len(noise)):
        noise[t] += 0.6 * noise[t - 1]
    white = whiten(noise, 0.6)
    assert abs(np.corrcoef(white[1:], white[:-1])[0, 1]) < 0.05


@pytest.mark.parametrize("entropies", [[0.1, 0.2, 0.3], [0.5] * 30])
def test_what_shows_no_curve_is_refused(entropies):
    with pytest.raises(ValueError, match="4 points"):
        estimate(np.array(entropies), np.arange(len(entropies), dtype=float))

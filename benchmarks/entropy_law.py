"""How often the 95 % intervals of the entropy law hold the truth, and how wide they are, beside other estimators.

Noise is independent or a first-order autoregression, and entropies fall as in runs. Also the error of the early
prediction on the paper's curves, and the paper's largest model predicted from the smaller ones.
Run: python -m benchmarks.entropy_law
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from megacov.monitor.entropy_law.early import predict_early
from megacov.monitor.entropy_law.estimate import estimate, whiten
from megacov.monitor.entropy_law.sizes import SizedLaw, predict_size
from megacov.monitor.entropy_law.student import t_quantile

Floats = NDArray[np.float64]

PAPER = {0.5: (0.045, 0.19), 1.5: (0.095, 0.35), 3.0: (0.175, 0.475), 7.0: (0.21, 0.60), 32.0: (0.235, 0.69)}
"""a and b of Qwen2.5 on mathematics by billions of parameters, read off figure 7 of arXiv 2505.22617 (+-0.01)."""
SHAPES: dict[str, Callable[[Floats], Floats]] = {
    "collapses at once": lambda time: 0.03 + 0.7 * np.exp(-9 * time),
    "falls slowly": lambda time: 0.05 + 1.4 * np.exp(-3 * time),
    "falls steadily": lambda time: 0.6 - 0.5 * time,
}
"""Entropy over the time of the run, from 0 to 1. The first is the paper's: 94 % of the fall in a third of the steps."""
_A, _B, _NOISE = 0.1, 0.6, 0.01

Interval = Callable[[Floats, Floats], dict[str, tuple[float, float]]]
"""fn(entropies, rewards) -> low and high of each of `quantities`."""


def quantities(entropies: Floats) -> dict[str, tuple[float, float]]:
    """How a and b make up what has an interval: themselves, the ceiling, the curve where the run begins and ends."""
    return {
        "a": (1.0, 0.0),
        "b": (0.0, 1.0),
        "ceiling": (-1.0, 1.0),
        "first": (-math.exp(entropies[0]), 1.0),
        "last": (-math.exp(entropies[-1]), 1.0),
    }


def autoregression(num_points: int, num_curves: int, rho: float, rng: np.random.Generator) -> Floats:
    """Noise of standard deviation 1 whose neighbours correlate by rho: [num_curves, num_points]."""
    noise = rng.standard_normal((num_curves, num_points))
    for t in range(1, num_points):
        noise[:, t] = rho * noise[:, t - 1] + math.sqrt(1 - rho * rho) * noise[:, t]
    return noise


def mixed(entropies: Floats, rewards: Floats) -> dict[str, tuple[float, float]]:
    """megacov's intervals."""
    fitted = estimate(entropies, rewards)
    found = {name: fitted.interval(*direction) for name, direction in quantities(entropies).items()}
    return {name: (interval.low, interval.high) for name, interval in found.items()}


def least_squares(entropies: Floats, rewards: Floats) -> dict[str, tuple[float, float]]:
    """Intervals of plain least squares, which takes all errors as independent."""
    columns = _columns(entropies)
    solution, inverse, residuals = _solve(columns, rewards)
    return _intervals(solution, inverse * (residuals @ residuals) / (len(residuals) - 2), entropies)


def newey_west(entropies: Floats, rewards: Floats) -> dict[str, tuple[float, float]]:
    """Intervals of least squares with Newey and West's covariance, their usual number of lags, and Student's t."""
    columns, n = _columns(entropies), len(rewards)
    solution, inverse, residuals = _solve(columns, rewards)
    lags = int(4 * (n / 100) ** (2 / 9))
    scores = columns * residuals[:, None]
    middle = scores.T @ scores
    for lag in range(1, lags + 1):
        crossed = scores[lag:].T @ scores[:-lag]
        middle += (1 - lag / (lags + 1)) * (crossed + crossed.T)
    return _intervals(solution, inverse @ middle @ inverse * n / (n - 2), entropies)


def knowing(rho: float) -> Interval:
    """Generalised least squares by an oracle that knows the correlation: no interval that is right can be narrower."""

    def intervals(entropies: Floats, rewards: Floats) -> dict[str, tuple[float, float]]:
        columns = np.stack([whiten(column, rho) for column in _columns(entropies).T], axis=1)
        solution, inverse, residuals = _solve(columns, whiten(rewards, rho))
        return _intervals(solution, inverse * (residuals @ residuals) / (len(residuals) - 2), entropies)

    return intervals


def _columns(entropies: Floats) -> Floats:
    return np.stack([-np.exp(entropies), np.ones(len(entropies))], axis=1)


def _solve(columns: Floats, rewards: Floats) -> tuple[Floats, Floats, Floats]:
    """Coefficients of least squares, inverse of the normal equations, residuals."""
    inverse = np.linalg.inv(columns.T @ columns)
    solution = inverse @ columns.T @ rewards
    return solution, inverse, rewards - columns @ solution


def _intervals(solution: Floats, covariance: Floats, entropies: Floats) -> dict[str, tuple[float, float]]:
    intervals = {}
    for name, direction in quantities(entropies).items():
        half = t_quantile(len(entropies) - 2) * math.sqrt(np.array(direction) @ covariance @ np.array(direction))
        middle = float(np.array(direction) @ solution)
        intervals[name] = (middle - half, middle + half)
    return intervals


METHODS: dict[str, Interval] = {"megacov": mixed, "Newey-West": newey_west, "least squares": least_squares}


def simulate(
    method: Interval,
    *,
    shape: str,
    num_points: int,
    rho: float,
    num_curves: int,
    seed: int = 0,
    is_binomial: bool = False,
) -> dict[str, Floats]:
    """Intervals of simulated curves.

    Args:
        method: what makes the intervals.
        shape: one of SHAPES.
        num_points: points of a curve.
        rho: correlation of the errors of neighbouring points.
        num_curves: curves to simulate.
        seed: of the noise.
        is_binomial: noise grows and shrinks with the reward as that of a share of right answers does.

    Returns:
        [num_curves, 2] by name of the quantity: low and high ends, less the truth.
    """
    entropies = SHAPES[shape](np.linspace(0, 1, num_points))
    rewards = _B - _A * np.exp(entropies)
    scale = _NOISE * (2 * np.sqrt(rewards * (1 - rewards)) if is_binomial else 1.0)
    noises = autoregression(num_points, num_curves, rho, np.random.default_rng(seed))
    found = [method(entropies, rewards + scale * noise) for noise in noises]
    return {
        name: np.array([each[name] for each in found]) - (of_a * _A + of_b * _B)
        for name, (of_a, of_b) in quantities(entropies).items()
    }


def coverage(ends: dict[str, Floats]) -> dict[str, float]:
    """Share of the curves whose intervals hold the truth, by name of the quantity."""
    return {name: float(np.mean((each[:, 0] <= 0) & (each[:, 1] >= 0))) for name, each in ends.items()}


def widths(ends: dict[str, Floats]) -> dict[str, float]:
    """Median width of the intervals, by name of the quantity."""
    return {name: float(np.median(each[:, 1] - each[:, 0])) for name, each in ends.items()}


def early_errors(
    *, noise: float, rho: float, num_curves: int, num_points: int = 236, seed: int = 0
) -> tuple[float, float, float]:
    """Errors of the early prediction on the paper's five curves, whose first 36 of 236 points are fitted.

    Args:
        noise: standard deviation of a reward.
        rho: correlation of the errors of neighbouring points.
        num_curves: curves of each size.
        num_points: points of a curve.
        seed: of the noise.

    Returns:
        Mean root mean square error on the other points, mean absolute error at the last point, and mean absolute
        difference of the early ceiling and the true one.
    """
    rng = np.random.default_rng(seed)
    entropies = SHAPES["collapses at once"](np.linspace(0, 1, num_points))
    errors = []
    for a, b in PAPER.values():
        for points in autoregression(num_points, num_curves, rho, rng):
            early = predict_early(entropies, b - a * np.exp(entropies) + noise * points)
            assert early is not None
            errors.append((early.rmse, abs(early.final_error), abs(early.ceiling - (b - a))))
    rmse, final, ceiling = np.mean(errors, axis=0)
    return float(rmse), float(final), float(ceiling)


def _print_coverage(num_curves: int) -> None:
    print("| noise | points | megacov | its width | Newey-West | least squares |")
    print("|---" * 6 + "|")
    noises = [(f"correlation {rho:g}" if rho else "independent", rho, False) for rho in (0.0, 0.5, 0.8, 0.9, 0.95)]
    for name, rho, is_binomial in [*noises, ("correlation 0.5, binomial", 0.5, True)]:
        for num_points in (30, 50, 100, 300):
            shares: dict[str, list[float]] = {method: [] for method in METHODS}
            wider: list[float] = []
            for shape in SHAPES:
                settings = {"shape": shape, "num_points": num_points, "rho": rho, "num_curves": num_curves}
                narrowest = widths(simulate(knowing(rho), is_binomial=is_binomial, **settings))
                for method, intervals in METHODS.items():
                    ends = simulate(intervals, is_binomial=is_binomial, **settings)
                    shares[method] += coverage(ends).values()
                    if method == "megacov":
                        wider += [width / narrowest[quantity] for quantity, width in widths(ends).items()]
            cells = [f"{100 * min(found):.1f} to {100 * max(found):.1f}" for found in shares.values()]
            cells.insert(1, f"{min(wider):.2f} to {max(wider):.2f}")
            print(f"| {name} | {num_points} |", " | ".join(cells), "|", flush=True)


def _print_early(num_curves: int) -> None:
    print("\n| noise of a reward | correlation | RMSE on the rest | error of the last point | error of the ceiling |")
    print("|---|---|---|---|---|")
    for noise, rho in ((0.005, 0.0), (0.005, 0.7), (0.01, 0.0), (0.01, 0.7)):
        errors = early_errors(noise=noise, rho=rho, num_curves=num_curves)
        print(f"| {noise:g} | {rho:g} |", " | ".join(f"{100 * error:.2f} %" for error in errors), "|")


def _print_sizes() -> None:
    laws = [SizedLaw(size, a, b) for size, (a, b) in PAPER.items()]
    print("\n| predicted | from | a | b | ceiling |")
    print("|---|---|---|---|---|")
    for size in (7.0, 32.0):
        prediction = predict_size([law for law in laws if law.size <= size], size)
        cells = []
        for line in (prediction.a, prediction.b, prediction.ceiling):
            assert line.interval is not None and line.error is not None
            cells.append(
                f"{line.value:.3f} ({line.interval.low:.3f} to {line.interval.high:.3f}), error {line.error:+.3f}"
            )
        print(
            f"| {size:g}B | {prediction.from_sizes[0]:g}B to {prediction.from_sizes[-1]:g}B |", " | ".join(cells), "|"
        )


def main() -> None:
    """Print the tables of docs/entropy.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=int, default=2000, help="simulated curves of each kind")
    curves = parser.parse_args().curves
    _print_coverage(curves)
    _print_early(max(curves // 10, 10))
    _print_sizes()


if __name__ == "__main__":
    main()

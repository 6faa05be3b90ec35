"""Estimators of one problem's score from n responses, and intervals of their mean over problems.

Everything is pure. The responses to a problem are taken as exchangeable, so that an estimator of "k responses" is the
exact mean over all subsets of k of the n responses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
NUM_RESAMPLES = 10_000
_CHUNK = 2_000_000  # numbers drawn at a time


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of a mean."""

    low: float
    high: float


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k responses is right.

    1 - C(n - c, k) / C(n, k)   (Chen et al. 2021, arXiv 2107.03374, eq. 1), in exact integers. Drawing k responses with
    replacement would instead give 0.684 for 1 right of 4 at k = 4, where the value is 1.

    Args:
        num_samples: n, responses to the problem.
        num_right: c, right ones.
        k: responses that are tried.

    Returns:
        A number from 0 to 1, correctly rounded.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    _check(num_samples, num_right, k)
    total = math.comb(num_samples, k)
    return (total - math.comb(num_samples - num_right, k)) / total


def majority_at_k(votes: Sequence[tuple[int, bool]], num_samples: int, k: int) -> float:
    """Chance that the most frequent answer of k of the n responses is right, over all subsets of k.

    Where several answers are most frequent, each of them is taken with the same chance. Responses without an answer
    have no vote; a subset in which nobody votes is wrong. The sum over subsets is exact: for each number of votes of
    the winner, the subsets are counted by how many right and wrong answers have that many.

    Args:
        votes: for each distinct answer, how many responses gave it and whether it is right.
        num_samples: n, responses to the problem, those without an answer included.
        k: responses that vote.

    Returns:
        A number from 0 to 1, correctly rounded.

    Raises:
        ValueError: not 1 <= k <= n, or more votes than responses.
    """
    num_votes = sum(count for count, _ in votes)
    _check(num_samples, num_votes, k)
    without_answer = num_samples - num_votes
    most = max((count for count, _ in votes), default=0)
    if k == num_samples:  # one subset, and any number of responses
        winners = [is_right for count, is_right in votes if count == most]
        return sum(winners) / len(winners) if winners else 0.0
    most, score = min(k, most), Fraction(0)
    for level in range(1, most + 1):
        for (taken, num_right, num_wrong), ways in _count_subsets(votes, level, k).items():
            if num_right:
                ways *= math.comb(without_answer, k - taken)
                score += Fraction(ways * num_right, num_right + num_wrong)
    return float(score / math.comb(num_samples, k))


def _count_subsets(votes: Sequence[tuple[int, bool]], level: int, k: int) -> dict[tuple[int, int, int], int]:
    """Subsets in which no answer has more than `level` votes, by (votes, right and wrong answers with `level`)."""
    ways = {(0, 0, 0): 1}
    for count, is_right in votes:
        grown: dict[tuple[int, int, int], int] = {}
        for (taken, num_right, num_wrong), before in ways.items():
            for chosen in range(min(count, level, k - taken) + 1):
                is_top = chosen == level
                state = (taken + chosen, num_right + (is_top and is_right), num_wrong + (is_top and not is_right))
                grown[state] = grown.get(state, 0) + before * math.comb(count, chosen)
        ways = grown
    return ways


def _check(num_samples: int, num_chosen: int, k: int) -> None:
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k} and there are {num_samples} responses: k must be from 1 to that number")
    if not 0 <= num_chosen <= num_samples:
        raise ValueError(f"{num_chosen} of {num_samples} responses is impossible")


def bootstrap_intervals(
    values: Sequence[Sequence[float]], *, seed: int, level: float = LEVEL, num_resamples: int = NUM_RESAMPLES
) -> list[Interval]:
    """Intervals of means over problems, by resampling the problems; all rows are resampled together.

    Expanded percentile bootstrap (Hesterberg 2015, arXiv 1411.5279, section 5.3): the plain percentile interval of n
    problems is too narrow by about sqrt((n - 1) / n) and by the difference between the normal and Student's
    distribution, so that wider quantiles are taken, by an amount that vanishes with n. Where all problems score 0, or
    all 1, resampling shows no spread; then one bound is that value, and the other the one at which this outcome has
    the chance (1 - level) / 2, which is Clopper and Pearson's. It holds for all values between 0 and 1.

    Args:
        values: a row for each score, with its value for each problem.
        seed: of the resampling.
        level: share of the intervals that hold the mean over the population from which the problems come.
        num_resamples: resamples.

    Returns:
        An interval for each row. For one problem that scores neither 0 nor 1 it is that score alone.
    """
    table = np.asarray(values, dtype=np.float64)
    num_scores, num_problems = table.shape
    generator = np.random.default_rng(seed)
    means = np.empty((num_scores, num_resamples))
    step = max(1, _CHUNK // num_problems)
    for start in range(0, num_resamples, step):
        chosen = generator.integers(num_problems, size=(min(step, num_resamples - start), num_problems))
        for row in range(num_scores):
            means[row, start : start + step] = table[row][chosen].mean(axis=1)
    tail = _expanded_tail((1.0 - level) / 2.0, num_problems)
    quantiles = np.quantile(means, [tail, 1.0 - tail], axis=1)
    return [
        _certain(table[row], level) or Interval(float(quantiles[0, row]), float(quantiles[1, row]))
        for row in range(num_scores)
    ]


def _certain(values: NDArray[np.float64], level: float) -> Interval | None:
    """The exact interval where all problems score 0, or all 1; None for all others."""
    unlikely = ((1.0 - level) / 2.0) ** (1.0 / len(values))
    if not values.any():
        return Interval(0.0, 1.0 - unlikely)
    return Interval(unlikely, 1.0) if bool((values == 1.0).all()) else None


def _expanded_tail(tail: float, num_problems: int) -> float:
    if num_problems < 2:
        return tail
    normal = NormalDist()
    quantile = _student_quantile(tail, num_problems - 1)
    return normal.cdf(math.sqrt(num_problems / (num_problems - 1)) * quantile)


def _student_quantile(tail: float, freedom: int) -> float:
    """Quantile of Student's distribution by its expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf(tail)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))

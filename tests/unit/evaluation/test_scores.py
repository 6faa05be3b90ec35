"""Estimators against enumeration of all subsets, and intervals against simulated coverage."""

from __future__ import annotations

import math
import time
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest

from megacov.evaluation.scores import bootstrap_intervals, majority_at_k, pass_at_k


@pytest.mark.parametrize("num_samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_mean_over_all_subsets(num_samples):
    for num_right in range(num_samples + 1):
        is_right = [True] * num_right + [False] * (num_samples - num_right)
        for k in range(1, num_samples + 1):
            brute = fmean(any(chosen) for chosen in combinations(is_right, k))
            assert pass_at_k(num_samples, num_right, k) == pytest.approx(brute, abs=1e-15)


def test_pass_at_k_is_stable_for_many_samples():
    assert pass_at_k(4096, 0, 4096) == 0.0
    assert pass_at_k(4096, 1, 4096) == 1.0
    assert pass_at_k(4096, 1, 1) == 1 / 4096
    assert pass_at_k(10_000, 1, 5_000) == 0.5


def test_one_right_of_four_passes_at_four():
    assert pass_at_k(4, 1, 4) == 1.0  # 0.684 if responses are drawn with replacement


@pytest.mark.parametrize("k", [0, 5])
def test_k_is_at_most_the_number_of_samples(k):
    with pytest.raises(ValueError, match="k must be from 1"):
        pass_at_k(4, 1, k)
    with pytest.raises(ValueError, match="k must be from 1"):
        majority_at_k([(4, True)], 4, k)


def _majority_by_enumeration(votes: list[tuple[int, bool]], num_samples: int, k: int) -> float:
    ballots: list[int | None] = [answer for answer, (count, _) in enumerate(votes) for _ in range(count)]
    ballots += [None] * (num_samples - len(ballots))
    scores = []
    for chosen in combinations(ballots, k):
        counts = {answer: chosen.count(answer) for answer in chosen if answer is not None}
        winners = [answer for answer, count in counts.items() if count == max(counts.values())]
        scores.append(fmean(votes[answer][1] for answer in winners) if winners else 0.0)
    return fmean(scores)


@pytest.mark.parametrize(
    ("votes", "num_samples"),
    [
        ([(4, True)], 4),
        ([(2, True), (2, False)], 4),
        ([(1, True), (2, False), (3, False)], 8),
        ([(3, True), (2, True), (2, False), (1, False)], 9),
        ([(1, False)] * 3 + [(1, True)], 6),
        ([(5, False)], 7),
        ([], 5),
    ],
)
def test_majority_is_the_mean_over_all_subsets(votes, num_samples):
    for k in range(1, num_samples + 1):
        brute = _majority_by_enumeration(votes, num_samples, k)
        assert majority_at_k(votes, num_samples, k) == pytest.approx(brute, abs=1e-14)


def test_one_vote_of_all_of_many_responses_takes_no_time():
    since = time.process_time()
    assert majority_at_k([(32, index < 3) for index in range(4)] + [(1, False)] * 3968, 4096, 4096) == 0.75
    assert time.process_time() - since < 2.0


def test_a_tie_of_one_right_and_one_wrong_answer_counts_half():
    assert majority_at_k([(1, True), (1, False)], 2, 2) == 0.5


def test_intervals_depend_on_the_seed_alone():
    values = [[math.sqrt(i) % 1.0 for i in range(1, 21)], [math.sqrt(i) % 0.7 for i in range(1, 21)]]
    first = bootstrap_intervals(values, seed=3)
    assert first == bootstrap_intervals(values, seed=3)
    assert first != bootstrap_intervals(values, seed=4)
    assert first[1] == bootstrap_intervals(values[1:], seed=3)[0], "other scores of a set change nothing"


def test_interval_of_many_problems_is_that_of_the_normal_distribution():
    values = [0.0] * 500 + [1.0] * 500
    (interval,) = bootstrap_intervals([values], seed=0)
    half = 1.96 * 0.5 / math.sqrt(1000)
    assert interval.low == pytest.approx(0.5 - half, abs=2e-3)
    assert interval.high == pytest.approx(0.5 + half, abs=2e-3)


@pytest.mark.parametrize("num_problems", [1, 30, 500])
def test_interval_where_no_problem_is_solved_or_every_one_is(num_problems):
    unlikely = 0.025 ** (1 / num_problems)
    (none,) = bootstrap_intervals([[0.0] * num_problems], seed=0)
    (every,) = bootstrap_intervals([[1.0] * num_problems], seed=0)
    assert (none.low, none.high) == (0.0, pytest.approx(1.0 - unlikely))
    assert (every.low, every.high) == (pytest.approx(unlikely), 1.0)
    assert (1 - none.high) ** num_problems == pytest.approx(0.025), "so unlikely is this outcome at the bound"


def _coverage(*, problems: int, samples: int, alpha: float, beta: float, k: int | None, simulations: int) -> float:
    """Share of intervals that hold the mean over problems whose chances are Beta(alpha, beta)."""
    generator = np.random.default_rng(7)
    rights = generator.binomial(samples, generator.beta(alpha, beta, size=(simulations, problems)))
    if k is None:
        score, truth = np.arange(samples + 1) / samples, alpha / (alpha + beta)
    else:
        score = np.array([pass_at_k(samples, right, k) for right in range(samples + 1)])
        miss = math.lgamma(beta + k) - math.lgamma(beta) + math.lgamma(alpha + beta) - math.lgamma(alpha + beta + k)
        truth = 1.0 - math.exp(miss)
    held = 0
    for simulation in range(simulations):
        (interval,) = bootstrap_intervals([score[rights[simulation]].tolist()], seed=simulation, num_resamples=1000)
        held += interval.low <= truth <= interval.high
    return held / simulations


# 30 problems as in AIME with 32 responses, and 500 as in MATH-500 with one.
@pytest.mark.parametrize("case", [(30, 32, 0.5, 1.5, None), (30, 32, 0.5, 1.5, 4), (30, 1, 1.0, 1.0, None)])
def test_coverage(case):
    problems, samples, alpha, beta, k = case
    share = _coverage(problems=problems, samples=samples, alpha=alpha, beta=beta, k=k, simulations=600)
    assert 0.93 <= share <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        (30, 32, 0.5, 1.5, None),
        (30, 32, 0.5, 1.5, 4),
        (30, 32, 0.5, 1.5, 16),
        (30, 32, 0.5, 0.5, None),
        (40, 32, 1.0, 1.0, None),
        (30, 1, 1.0, 1.0, None),
        (200, 1, 1.0, 1.0, None),
        (500, 1, 2.0, 1.0, None),
        (675, 1, 1.0, 2.0, None),
    ],
)
def test_coverage_of_more_cases(case):
    problems, samples, alpha, beta, k = case
    share = _coverage(problems=problems, samples=samples, alpha=alpha, beta=beta, k=k, simulations=4000)
    assert 0.93 <= share <= 0.97


@pytest.mark.slow
def test_coverage_is_lower_where_few_problems_are_solved_at_all():
    """The figure in docs/evaluation.md: a mean of 0.1 that a few of 30 problems make up."""
    share = _coverage(problems=30, samples=32, alpha=0.2, beta=1.8, k=None, simulations=4000)
    assert 0.89 <= share < 0.94

"""Checks of a fit against definitions: every order of signs, every point really left out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from megacov.monitor.entropy_law.diagnostics import diagnose, runs_test
from megacov.monitor.entropy_law.estimate import estimate, whiten

TIME = np.linspace(0, 1, 80)
ENTROPIES = 0.05 + 1.2 * np.exp(-4 * TIME)
NOISE = 0.02 * np.random.default_rng(0).standard_normal(80)
REWARDS = 0.7 - 0.22 * np.exp(ENTROPIES) + NOISE


def test_expected_runs_are_the_mean_over_all_orders():
    orders = [signs for signs in product([-1.0, 1.0], repeat=9) if sum(sign > 0 for sign in signs) == 4]
    counts = [runs_test(np.array(signs))[0] for signs in orders]
    assert runs_test(np.array(orders[0]))[1] == pytest.approx(np.mean(counts))
    assert counts[0] == 1 + np.count_nonzero(np.diff(orders[0]))


def test_a_run_of_signs_is_unlikely_and_noise_is_not():
    assert runs_test(np.sin(TIME * 6))[2] < 1e-6
    assert runs_test(np.tile([1.0, -1.0], 40))[2] < 1e-6
    assert runs_test(NOISE)[2] > 0.01
    assert runs_test(np.ones(30))[2] == 1.0


def test_the_part_that_is_left_out_is_the_one_that_matters_most():
    rewards = REWARDS.copy()
    rewards[41] += 0.4
    fitted = estimate(ENTROPIES, rewards)
    found = diagnose(ENTROPIES, rewards, fitted)
    columns = np.stack([whiten(-np.exp(ENTROPIES), found.autocorrelation), whiten(np.ones(80), found.autocorrelation)])
    answers = whiten(rewards, found.autocorrelation)

    def ceiling_without(part: slice) -> float:
        kept = np.delete(np.arange(80), part)
        a, b = np.linalg.lstsq(columns[:, kept].T, answers[kept], rcond=None)[0]
        return b - a

    everything = ceiling_without(slice(0, 0))
    changes = [abs(ceiling_without(slice(i, i + 1)) - everything) for i in range(80)]
    assert found.one_left_out.first == found.one_left_out.last == int(np.argmax(changes)) == 41
    assert abs(found.one_left_out.change) == pytest.approx(max(changes), rel=1e-6)
    blocks = [abs(ceiling_without(slice(i, i + 8)) - everything) for i in range(0, 80, 8)]
    worst = 8 * int(np.argmax(blocks))
    assert (found.block_left_out.first, found.block_left_out.last) == (worst, worst + 7)
    assert found.block_left_out.ceiling == pytest.approx(ceiling_without(slice(worst, worst + 8)), rel=1e-6)


def test_halves_with_one_curve_agree_and_with_two_do_not():
    assert diagnose(ENTROPIES, REWARDS, estimate(ENTROPIES, REWARDS)).halves_p > 0.01
    changed = REWARDS - np.where(TIME > 0.5, 0.2, 0.0)
    assert diagnose(ENTROPIES, changed, estimate(ENTROPIES, changed)).halves_p < 1e-4


def test_a_half_without_a_curve_of_its_own_is_not_compared():
    flat = np.where(TIME > 0.5, 0.05, ENTROPIES)
    assert diagnose(flat, REWARDS, estimate(flat, REWARDS)).halves_p is None
    assert diagnose(ENTROPIES[:19], REWARDS[:19], estimate(ENTROPIES[:19], REWARDS[:19])).halves_p is None

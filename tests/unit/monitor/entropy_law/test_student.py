"""Quantiles of Student's t against printed tables, and mixtures of it against its exact sums."""

from __future__ import annotations

import numpy as np
import pytest

from megacov.monitor.entropy_law.student import StudentMixture, t_coverage, t_quantile


@pytest.mark.parametrize(
    ("dof", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (29, 2.0452), (120, 1.9799)],
)
def test_quantiles_of_95_percent(dof, quantile):
    assert t_quantile(dof) == pytest.approx(quantile, abs=5e-5)


def test_other_coverages_and_many_degrees_of_freedom():
    assert t_quantile(5, 0.99) == pytest.approx(4.0321, abs=5e-5)
    assert t_quantile(30, 0.9) == pytest.approx(1.6973, abs=5e-5)
    assert t_quantile(10**6) == pytest.approx(1.960, abs=3e-3)


def mixture(weights, means, scales, dof: int) -> StudentMixture:
    return StudentMixture(np.array(weights), np.array(means), np.array(scales), dof)


@pytest.mark.parametrize(("dof", "exact"), [(4, 1e-4), (12, 1e-6), (48, 1e-8), (900, 1e-10)])
def test_probabilities_are_those_of_the_exact_sums(dof, exact):
    x = np.linspace(-9, 9, 181)
    below = mixture([1.0], [0.0], [1.0], dof).below(x)
    assert below == pytest.approx([0.5 + np.sign(t) * t_coverage(abs(t), dof) / 2 for t in x], abs=exact)


def test_one_part_alone_has_the_interval_of_student():
    for coverage in (0.5, 0.95, 0.999):
        low, high = mixture([1.0], [3.0], [0.1], 60).interval(coverage)
        half = 0.1 * t_quantile(60, coverage)
        assert (low, high) == pytest.approx((3 - half, 3 + half), rel=1e-7)


@pytest.mark.parametrize(
    ("weights", "means", "scales", "dof"),
    [
        ([0.5, 0.5], [-4.0, 4.0], [1.0, 1.0], 30),
        ([0.97, 0.03], [0.0, 0.0], [1.0, 1e3], 30),  # the ends lie in the tails of a rare part
        ([0.02, 0.98], [-1.0, 1.0], [1e-3, 1e-3], 900),  # no density between two peaks
        ([0.2, 0.3, 0.5], [1.0, 1.0, 1.0], [1e-7, 2e-7, 1e-7], 30),
    ],
)
def test_an_interval_leaves_equal_shares_outside(weights, means, scales, dof):
    found = mixture(weights, means, scales, dof)
    assert found.below(np.array(found.interval())) == pytest.approx([0.025, 0.975], abs=1e-7)

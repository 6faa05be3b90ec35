"""Quantiles of Student's t against printed tables."""

from __future__ import annotations

import pytest

from megacov.monitor.entropy_law.student import t_quantile


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

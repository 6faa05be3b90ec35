"""Correlation and slope of predicted and observed changes of entropy."""

from __future__ import annotations

import numpy as np
import pytest

from megacov.monitor.history import Series
from megacov.monitor.theorem_agreement import Agreement, agreement_metrics, find_agreement


def series(values, *, first: int = 0) -> Series:
    values = np.asarray(values, dtype=np.float64)
    return Series(np.arange(first, first + len(values)), values)


@pytest.mark.parametrize("scale", [1.0, 1e-180])
def test_equals_numpy_whatever_the_scale(scale):
    generator = np.random.default_rng(1)
    x = generator.normal(size=30) * scale
    y = 3 * x + generator.normal(size=30) * scale
    found = find_agreement(series(x), series(y))
    assert found.count == 30
    assert found.correlation == pytest.approx(np.corrcoef(x / scale, y / scale)[0, 1])
    assert found.slope == pytest.approx(np.polyfit(x / scale, y / scale, 1)[0])
    assert found.same_sign == np.mean(np.sign(x) == np.sign(y))


def test_only_steps_with_both_and_finite_values_count():
    x, y = series([9, 1, 2, 3, np.nan, 5, 6, 7]), series([2, 4, 6, 0, 10, 12, np.inf], first=1)
    assert find_agreement(x, y, window=None) == Agreement(5, pytest.approx(1), pytest.approx(2), 1.0)


def test_the_window_is_the_last_measurements():
    x = np.arange(40.0)
    y = np.where(x < 20, -x, x)
    assert find_agreement(series(x), series(y), window=20).correlation == pytest.approx(1)
    assert find_agreement(series(x), series(y), window=None).correlation < 0.9


def test_too_few_or_equal_measurements_have_no_agreement():
    assert find_agreement(series([1, 2, 3, 4]), series([1, 2, 3, 4])) is None
    assert find_agreement(series([1] * 9), series(range(9))) is None
    assert find_agreement(series([]), series([])) is None


def test_what_has_no_value_has_no_tag():
    observed = {"theorem/observed": series([0] * 9), "theorem/centred": series(range(9))}
    assert agreement_metrics(observed) == {"theorem/centred_slope": 0, "theorem/centred_same_sign": 1 / 9}
    assert agreement_metrics({"theorem/centred": series(range(9))}) == {}

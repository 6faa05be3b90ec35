"""The adaptive entropy coefficient, step by step."""

from __future__ import annotations

import pytest

from megacov.plan.control import AdaptiveLaw, ControlState

LAW = AdaptiveLaw(start=0.0, lower=0.0, upper=3e-4, step=1e-4)


def test_it_rises_while_the_entropy_is_low_and_counts_only_then() -> None:
    state, found = LAW.begin(), []
    for measured in (0.3, 0.1, 0.2, 0.1, 0.1, 0.25, 0.1):
        state = LAW.after(state, measured=measured, target=0.2)
        found.append((state.value, state.integral))
    coefficients = [0.0, 1e-4, 2e-4, 3e-4, 3e-4, 2e-4, 3e-4]
    assert [each for _, each in found] == pytest.approx(coefficients)
    assert [each for each, _ in found] == pytest.approx([0.0, 1e-4, 2e-4, 3e-4, 3e-4, 0.0, 3e-4])


def test_a_resumed_coefficient_that_does_not_count_is_not_lost() -> None:
    """The value alone would not tell 2e-4 from 0."""
    quiet = ControlState(0.0, 2e-4, 0.5)
    assert LAW.after(quiet, measured=0.1, target=0.2) == ControlState(pytest.approx(3e-4), pytest.approx(3e-4), 0.1)


def test_it_begins_with_the_setting() -> None:
    assert AdaptiveLaw(start=1e-3, lower=0.0, upper=5e-3, step=1e-4).begin() == ControlState(1e-3, 1e-3)

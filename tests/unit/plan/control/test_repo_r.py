"""REPO-R's controller: it doubles and halves towards the target, turns around at the smallest, is never stuck at 0."""

from __future__ import annotations

import pytest

from megacov.plan.control import ControlState, RepoRLaw

LAW = RepoRLaw(start=0.0, smallest=0.1, largest=0.5)


def course(law: RepoRLaw, entropies: list[float]) -> list[float]:
    state, found = law.begin(), []
    for measured in entropies:
        state = law.after(state, measured=measured, target=1.0)
        found.append(state.value)
    return found


def test_it_goes_up_and_down_between_its_bounds_through_a_change_of_sign() -> None:
    assert LAW.begin() == ControlState(0.1)
    assert course(LAW, [0.5] * 4) == [0.2, 0.4, 0.5, 0.5]
    assert course(LAW, [0.5] * 2 + [1.5] * 6) == [0.2, 0.4, 0.2, 0.1, -0.1, -0.2, -0.4, -0.5]
    assert course(LAW, [1.5] * 2 + [0.5] * 3) == [-0.1, -0.2, -0.1, 0.1, 0.2]
    assert course(LAW, [1.0]) == [0.1]


@pytest.mark.parametrize(("start", "first"), [(0.3, 0.3), (-0.3, -0.3), (-0.01, -0.1), (0.9, 0.5)])
def test_it_begins_with_the_setting_within_its_bounds(start: float, first: float) -> None:
    assert RepoRLaw(start, 0.1, 0.5).begin().value == first


def test_a_magnitude_between_powers_of_two_never_falls_below_the_smallest() -> None:
    law = RepoRLaw(start=0.3, smallest=0.1, largest=0.5)
    assert course(law, [1.5, 1.5, 1.5]) == [0.15, -0.1, -0.2]

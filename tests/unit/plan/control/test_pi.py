"""The PI law: its answer by hand, its bounds, what it does not add up, and where it goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacov.plan.control import ControlState, PiLaw, Target

LAW = PiLaw(start=1.0, lower=0.0, upper=4.0, proportional=0.5, integral=0.1)
ENTROPIES = st.lists(st.floats(0, 20), min_size=1, max_size=30)


def run(law: PiLaw, entropies: list[float], target: float = 1.0) -> ControlState:
    state = law.begin()
    for measured in entropies:
        state = law.after(state, measured=measured, target=target)
    return state


def test_two_steps_by_hand() -> None:
    first = LAW.after(LAW.begin(), measured=0.8, target=1.0)
    assert first == ControlState(pytest.approx(4 * (0.25 + 0.5 * 0.2 + 0.1 * 0.2)), pytest.approx(0.02), 0.8)
    second = LAW.after(first, measured=1.1, target=1.0)
    assert second.integral == pytest.approx(0.02 - 0.01)
    assert second.value == pytest.approx(4 * (0.25 - 0.05 + 0.01))


def test_gains_mean_the_same_for_every_scale_of_entropy_and_value() -> None:
    entropies = [0.9, 0.5, 1.3, 0.7]
    other = replace(LAW, start=1e-4, upper=4e-4)
    expected, found = run(LAW, entropies), run(other, [0.3 * each for each in entropies], target=0.3)
    assert found.value == pytest.approx(expected.value * 1e-4) and found.integral == pytest.approx(expected.integral)


def test_equal_places_are_equal_ratios_on_a_log_scale() -> None:
    law = PiLaw(start=1e-3, lower=1e-4, upper=1e-2, proportional=0.5, integral=0.0, is_log=True)
    assert law.after(law.begin(), measured=0.5, target=1.0).value == pytest.approx(1e-3 * 100**0.25)
    assert law.after(law.begin(), measured=1.5, target=1.0).value == pytest.approx(1e-3 * 100**-0.25)


def test_an_error_within_the_dead_band_changes_nothing_and_its_edge_is_no_jump() -> None:
    law = replace(LAW, dead_band=0.1)
    for measured in (0.91, 1.0, 1.09):
        assert law.after(law.begin(), measured=measured, target=1.0) == ControlState(1.0, 0.0, measured)
    beyond = law.after(law.begin(), measured=0.899, target=1.0)
    assert 1.0 < beyond.value < 1.0 + 4 * 0.6 * 0.0011


@given(ENTROPIES, ENTROPIES)
def test_the_value_keeps_its_bounds_and_leaves_one_as_soon_as_the_error_turns(before, after) -> None:
    for law in (LAW, replace(LAW, proportional=0.0), replace(LAW, start=1e-3, lower=1e-4, is_log=True)):
        state = run(law, [*before, *after])
        assert law.lower <= state.value <= law.upper
        # However long the entropy was off: the first step above the target lowers the value, one below it raises it.
        low = run(law, [*before, *[0.0] * 50])
        assert low.value == law.upper and law.after(low, measured=1.5, target=1.0).value < law.upper
        high = run(law, [*before, *[9.0] * 50])
        assert high.value == law.lower and law.after(high, measured=0.5, target=1.0).value > law.lower


@given(ENTROPIES, st.floats(0, 20))
def test_an_error_adds_no_more_than_takes_the_value_to_its_bound(before, measured) -> None:
    """What the proportional part already asks for beyond a bound is not added up as well."""
    law = replace(LAW, proportional=0.9, integral=0.3)
    state, error = run(law, before), 1.0 - measured
    change = law.after(state, measured=measured, target=1.0).integral - state.integral
    room = (1.0 if error > 0 else 0.0) - law.place(law.start) - law.proportional * error - state.integral
    most = max(0.0, room) if error > 0 else min(0.0, room)
    assert min(0.0, most) - 1e-12 <= change <= max(0.0, most) + 1e-12


def test_the_target_goes_straight_from_point_to_point_and_stays() -> None:
    target = Target([(0, 0.6), (10, 0.4), (20, 0.5)])
    assert [target.at(step) for step in (0, 5, 10, 15, 20, 99)] == pytest.approx([0.6, 0.5, 0.4, 0.45, 0.5, 0.5])
    assert Target([(0, 0.3)]).at(7) == 0.3

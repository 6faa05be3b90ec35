"""The plant answers as its equation says, and gains are judged as the theory of such loops says."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import pytest

from megacov.plan.control import ControlState, PiLaw, Plant, judge, simulate

LAW = PiLaw(start=0.0, lower=0.0, upper=1.0, proportional=0.5, integral=0.05)


class Constant:
    """No control at all."""

    def __init__(self, value: float) -> None:
        self._value = value

    def begin(self) -> ControlState:
        return ControlState(self._value)

    def after(self, state: ControlState, *, measured: float, target: float) -> ControlState:
        return state


def test_an_uncontrolled_entropy_goes_exponentially_to_its_rest() -> None:
    plant = Plant(gain=1.0, time_constant=100.0)
    found = simulate(Constant(0.75), plant, float, steps=300, first=0.25).entropies
    assert found[0] == 0.25
    for step in (50, 100, 299):
        assert found[step] == pytest.approx(1.25 - exp(-step / 100), abs=0.005)


def test_a_change_shows_after_the_delay() -> None:
    law = PiLaw(start=0.5, lower=0.0, upper=1.0, proportional=1.0, integral=0.0)
    for delay in (0, 1, 5):
        found = simulate(law, Plant(1.0, 1.0, delay), law.place, steps=20, first=0.9).entropies
        # At place 1/2 the entropy goes to 1 in one step; the answer to the 0.9 of step 0 comes delay + 1 steps later.
        assert found[1 : delay + 2] == pytest.approx([1.0] * (delay + 1)) and found[delay + 2] == pytest.approx(1.1)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_a_proportional_loop_swings_where_its_roots_leave_the_unit_circle(delay: int) -> None:
    """z^(delay + 1) (z - 1 + 1/T) + G kp / T = 0, whose roots numpy finds."""
    import numpy as np

    lag, gain = 8.0, 2.0
    for proportional in (0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0):
        roots = np.roots([1.0, 1 / lag - 1, *[0.0] * delay, gain * proportional / lag])
        largest = abs(roots).max()
        law = replace(LAW, start=0.5, proportional=proportional, integral=0.0)
        if abs(largest - 1) > 0.02:
            assert (judge(law, Plant(gain, lag, delay), law.place) == "swings") == (largest > 1), proportional


def test_a_law_that_is_too_weak_misses_its_target() -> None:
    plant = Plant(2.0, 10.0, 1)
    assert judge(replace(LAW, integral=0.0), plant, LAW.place) == "misses"
    assert judge(LAW, plant, LAW.place) == "settles"


def test_noise_is_no_more_than_doubled_by_gains_that_settle() -> None:
    plant = Plant(2.0, 10.0, 1, noise=0.05)
    for start in (0.0, 0.5, 1.0):
        found = simulate(replace(LAW, start=start), plant, LAW.place, steps=2000, with_noise=True)
        assert 0 < found.spread < 2 * plant.noise
    assert simulate(LAW, plant, LAW.place, steps=100, with_noise=True, seed=1) != simulate(
        LAW, plant, LAW.place, steps=100, with_noise=True, seed=2
    )

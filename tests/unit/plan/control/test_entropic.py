"""EntroPIC's law: by hand, within its bounds, and with a sum that a resumed run needs."""

from __future__ import annotations

import pytest

from megacov.plan.control import ControlState, EntropicLaw

LAW = EntropicLaw(start=0.0, proportional=1.0, integral=0.1)


def test_three_steps_by_hand() -> None:
    state, found = LAW.begin(), []
    for measured in (0.5, 0.2, 0.0):
        state = LAW.after(state, measured=measured, target=0.3)
        found.append((state.value, state.integral))
    assert [total for _, total in found] == pytest.approx([0.2, 0.1, -0.2])
    assert [alpha for alpha, _ in found] == pytest.approx([0.22, -0.09, -0.32])


def test_alpha_is_bounded_and_the_sum_is_not() -> None:
    state = LAW.begin()
    for _ in range(30):
        state = LAW.after(state, measured=3.3, target=0.3)
    assert state.value == 1.0 and state.integral == pytest.approx(90)
    assert LAW.after(state, measured=0.0, target=0.3).value == 1.0
    assert LAW.after(ControlState(0.0, -90.0), measured=0.3, target=0.3).value == -1.0

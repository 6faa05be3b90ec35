"""Proportional-integral control between two bounds, with a dead band and without windup."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import copysign, log

from megacov.plan.control.law import ControlState


@dataclass(frozen=True)
class PiLaw:
    """A PI law that is linear in the place of the value between its bounds, 0 at the lower and 1 at the upper one.

    e_k = (target - measured) / target, its magnitude less by the dead band
    I_k = I_(k-1) + integral e_k
    place_(k+1) = clamp(place of start + proportional e_k + I_k, 0, 1)

    Errors and places have no unit, so gains mean the same for every setting, every bound and every target. An error
    adds to I_k only what takes the place to its bound, and I_k alone never takes the start beyond one (no windup); so
    the value leaves a bound in the step in which the error changes sign.

    start: the value of the first step, within the bounds.
    lower, upper: bounds of the value; lower is above 0 if is_log.
    proportional, integral: gains, >= 0.
    dead_band: smallest error that counts, in [0, 1).
    is_log: whether places are equal ratios instead of equal differences.
    """

    start: float
    lower: float
    upper: float
    proportional: float
    integral: float
    dead_band: float = 0.0
    is_log: bool = False

    def begin(self) -> ControlState:
        """The state before the first step."""
        return ControlState(self.start)

    def within_bounds(self, state: ControlState) -> ControlState:
        """As `Law.within_bounds`."""
        return replace(state, value=min(max(state.value, self.lower), self.upper))

    def after(self, state: ControlState, *, measured: float, target: float) -> ControlState:
        """As `Law.after`."""
        error = (target - measured) / target
        error = copysign(max(0.0, abs(error) - self.dead_band), error)
        start, answer = self.place(self.start), self.proportional * error
        integral = min(max(state.integral + self.integral * error, -start), 1 - start)
        if error > 0:
            integral = max(state.integral, min(integral, 1 - start - answer))
        elif error < 0:
            integral = min(state.integral, max(integral, -start - answer))
        place = start + answer + integral
        return ControlState(self.value_at(min(max(place, 0.0), 1.0)), integral, measured)

    def place(self, value: float) -> float:
        """The place of a value between the bounds."""
        if self.is_log:
            return log(value / self.lower) / log(self.upper / self.lower)
        return (value - self.lower) / (self.upper - self.lower)

    def value_at(self, place: float) -> float:
        """The value at a place between 0 and 1; the bounds themselves at its ends."""
        if place in (0.0, 1.0):
            return self.lower if place == 0 else self.upper
        if self.is_log:
            return float(self.lower * (self.upper / self.lower) ** place)
        return self.lower + (self.upper - self.lower) * place

"""The adaptive entropy coefficient of Skywork-OR1."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megacov.plan.control.law import ControlState


@dataclass(frozen=True)
class AdaptiveLaw:
    """A coefficient that goes up or down by a constant, and that counts only while the entropy is too low.

    c_(k+1) = clamp(c_k + step, lower, upper)   where H_k <= target
    c_(k+1) = clamp(c_k - step, lower, upper)   where H_k > target
    value_(k+1) = c_(k+1) where H_k <= target, else 0

    See "Skywork Open Reasoner 1 Technical Report" (arXiv 2505.22312), adaptive entropy control. There H of the same
    step decides whether the coefficient counts; here, as in the authors' code, that of the step before, since the
    entropy of a step is only known after its passes. The state keeps c as its `integral`.

    start: c of the first step, which counts.
    lower, upper: bounds of c.
    step: > 0.
    """

    start: float
    lower: float
    upper: float
    step: float

    def begin(self) -> ControlState:
        """The state before the first step."""
        return ControlState(self.start, self.start)

    def within_bounds(self, state: ControlState) -> ControlState:
        """As `Law.within_bounds`."""
        coefficient = min(max(state.integral, self.lower), self.upper)
        return replace(state, value=coefficient if state.value == state.integral else 0.0, integral=coefficient)

    def after(self, state: ControlState, *, measured: float, target: float) -> ControlState:
        """As `Law.after`."""
        is_low = measured <= target
        moved = state.integral + (self.step if is_low else -self.step)
        coefficient = min(max(moved, self.lower), self.upper)
        return ControlState(coefficient if is_low else 0.0, coefficient, measured)

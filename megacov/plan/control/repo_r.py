"""The controller of REPO-R."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import copysign

from megacov.plan.control.law import ControlState


@dataclass(frozen=True)
class RepoRLaw:
    """A coefficient that doubles or halves each step, towards a higher or a lower entropy.

    Below the target a positive z doubles and a negative one halves, above it the other way round; where halving would
    take its magnitude below the smallest one, z changes its sign instead. Its magnitude stays at most the largest one.

    See REPO-R in "Entropy-Preserving Reinforcement Learning" (arXiv 2603.11682, appendix D.2). Zero cannot be doubled,
    so a start of a magnitude below the smallest begins at the smallest.

    start: z of the first step.
    smallest, largest: bounds of the magnitude, 0 < smallest < largest.
    """

    start: float
    smallest: float
    largest: float

    def begin(self) -> ControlState:
        """The state before the first step."""
        return ControlState(self._bounded(self.start))

    def within_bounds(self, state: ControlState) -> ControlState:
        """As `Law.within_bounds`."""
        return replace(state, value=self._bounded(state.value))

    def after(self, state: ControlState, *, measured: float, target: float) -> ControlState:
        """As `Law.after`."""
        if measured == target:
            return ControlState(state.value, 0.0, measured)
        side = 1.0 if measured < target else -1.0
        size = abs(state.value)
        if state.value * side > 0:
            value = side * min(2 * size, self.largest)
        elif size / 2 < self.smallest:
            value = side * self.smallest
        else:
            value = -side * size / 2
        return ControlState(value, 0.0, measured)

    def _bounded(self, value: float) -> float:
        return copysign(min(max(abs(value), self.smallest), self.largest), value)

"""What all laws of control share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ControlState:
    """All that a law knows from one step to the next; a checkpoint holds it as JSON, which keeps every bit of a float.

    value: that the next step uses.
    integral: what the law has summed up; 0 for a law that sums nothing, the coefficient for `AdaptiveLaw`.
    measured: entropy of the last step that had a finite one, nats; None before the first.
    """

    value: float
    integral: float = 0.0
    measured: float | None = None


class Law(Protocol):
    """A law of control: pure, so that equal measurements give equal values on every rank and after every resume."""

    def begin(self) -> ControlState:
        """The state before the first step."""

    def within_bounds(self, state: ControlState) -> ControlState:
        """The state that a run continues with, which may have been left by a law with other bounds."""

    def after(self, state: ControlState, *, measured: float, target: float) -> ControlState:
        """The state after a step.

        Args:
            state: before it, whose value it has used.
            measured: entropy of the step, finite nats >= 0.
            target: entropy that it should have had, nats > 0.

        Returns:
            The new state.
        """

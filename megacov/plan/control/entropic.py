"""The PI law of EntroPIC."""

from __future__ import annotations

from dataclasses import dataclass

from megacov.plan.control.law import ControlState


@dataclass(frozen=True)
class EntropicLaw:
    """A coefficient that follows the distance of the entropy from its target and the sum of all distances so far.

    S_k = S_(k-1) + (H_k - target)
    alpha_(k+1) = clamp(proportional (H_k - target) + integral S_k, -1, 1)

    See "EntroPIC: Towards Stable Long-Term Training of LLMs via Entropy Stabilization with Proportional-Integral
    Control" (arXiv 2511.15248). In the authors' code H is that of one micro-batch, and each process sums up its own S
    and forgets it when it ends, so that ranks train with different alphas; here H is of the whole step, there is one S,
    and a checkpoint keeps it. Nothing bounds S, as published: after a long time far from the target it takes as long to
    unwind.

    start: alpha of the first step, in [-1, 1].
    proportional: per nat.
    integral: per nat and step.
    """

    start: float
    proportional: float
    integral: float

    def begin(self) -> ControlState:
        """The state before the first step."""
        return ControlState(self.start)

    def within_bounds(self, state: ControlState) -> ControlState:
        """As `Law.within_bounds`: alpha has the same bounds in every run."""
        return state

    def after(self, state: ControlState, *, measured: float, target: float) -> ControlState:
        """As `Law.after`."""
        error = measured - target
        total = state.integral + error
        alpha = self.proportional * error + self.integral * total
        return ControlState(min(max(alpha, -1.0), 1.0), total, measured)

"""The course of the entropy that a controller steers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Target:
    """Points (step, nats) in order of step, the first at step 0."""

    points: Sequence[tuple[int, float]]

    def at(self, step: int) -> float:
        """The target of a step: straight from point to point, and that of the last point from there on.

        Args:
            step: number of the step, from 0.

        Returns:
            Nats.
        """
        for (left, before), (right, after) in pairwise(self.points):
            if step < right:
                return before + (after - before) * (step - left) / (right - left)
        return self.points[-1][1]

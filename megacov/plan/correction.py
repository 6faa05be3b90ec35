"""What it costs to correct a gradient for a selection, instead of making a forward pass to select before it.

A correction is a forward and a backward over the sequences up to their last selected token; a pass is one forward over
all positions. Everything is counted in forwards over all positions of an optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

FORWARD_AND_BACKWARD = 3
"""A backward is two forwards."""

RECOMPUTED = 4
"""With any recomputation; recomputing attention alone takes less than a whole forward, but no less is counted."""

MARGIN = 0.75
"""A correction must be this much cheaper than a pass to be chosen: the share of one optimizer step says what that of
the next may be, and small micro-batches cost more for each position."""


@dataclass(frozen=True)
class CorrectionCost:
    """The cost of corrections in a run.

    forwards: that a forward with its backward takes, recomputation included.
    pipeline, virtual: pipeline-parallel size, and virtual stages of each rank.
    """

    forwards: int
    pipeline: int = 1
    virtual: int = 1

    def over_a_pass(self, share: float, *, micro_batches: int) -> float:
        """Time of a correction over that of a pass, bubbles of the pipeline included.

        Args:
            share: positions of the correction over those of the optimizer step.
            micro_batches: of the optimizer step on a rank.

        Returns:
            1 where both take as long.
        """
        bubble = (self.pipeline - 1) / self.virtual
        return self.forwards * (share * micro_batches + bubble) / (micro_batches + bubble)

    def is_cheaper(self, share: float, *, micro_batches: int) -> bool:
        """Whether a correction is cheaper than a pass by more than `MARGIN` allows for."""
        return self.over_a_pass(share, micro_batches=micro_batches) < MARGIN


def correction_cost(recompute: str, *, pipeline: int, virtual: int) -> CorrectionCost:
    """The cost in a layout; `recompute` is "none", "selective" or "full"."""
    return CorrectionCost(FORWARD_AND_BACKWARD if recompute == "none" else RECOMPUTED, pipeline, virtual)


def evenly_spread_share(ratio: float, *, prompt: float, response: float) -> float:
    """Share of positions in prefixes that end in a selected token, if selected tokens fall anywhere alike.

    Among the tokens of a response their number is then Poisson's, with mean m = ratio x response, and the last of them
    lies at response x (1 - (1 - exp(-m)) / m) on average, 0 where there is none. Selected tokens that cluster in few
    sequences give less.

    Args:
        ratio: selected tokens over all.
        prompt: length of a prompt. [tokens]
        response: length of a response. [tokens]

    Returns:
        A number in [0, 1].
    """
    selected = ratio * response
    found = 1 - exp(-selected)
    return (found * prompt + response * (1 - found / selected)) / (prompt + response)

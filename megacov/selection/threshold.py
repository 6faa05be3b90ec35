"""Threshold and margin of a selection by rank, for monitoring. Shapes: [t] tokens of this rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from megacov.parallel.collectives import all_reduce_max

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def selection_margin(
    scores: Tensor, selected: Tensor, kept_mask: Tensor, *, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """The smallest selected score, and its distance from the largest score that was not selected.

    Args:
        scores: [...] float; read only. NaN counts as -inf, as in global_top_k.
        selected: [...] bool, selected tokens.
        kept_mask: [...] bool, all tokens that could have been selected.
        group: ranks that hold the other tokens.

    Returns:
        threshold: [] float64, +inf if nothing is selected; equal on all ranks.
        margin: [] float64, +inf if nothing or everything is selected; equal on all ranks. For a top k it is never
            negative; it is 0 if the token id broke a tie, and NaN if both scores are the same infinity.

    Collectives: group: MAX [2, 2] float64.
    Gradient: none.
    """
    values = scores.detach().reshape(-1)
    values = values if values.is_floating_point() else values.double()
    values = values.where(~values.isnan(), -math.inf)
    chosen, left_out = selected.reshape(-1), (kept_mask & ~selected).reshape(-1)
    if len(values) == 0:
        own = values.new_full((2,), -math.inf)
    else:
        own = torch.stack([-values.where(chosen, math.inf).amin(), values.where(left_out, -math.inf).amax()])
    negated_threshold, largest_left_out = all_reduce_max(own.double(), group=group)
    return -negated_threshold, -negated_threshold - largest_left_out

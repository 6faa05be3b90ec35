"""The smallest and the largest of the masked values of a group. Shapes: [...] tokens of this rank, any shape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from megacov.parallel.collectives import all_reduce_max

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def masked_extremes(values: Tensor, mask: Tensor, *, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of the masked values over all ranks of `group`.

    Args:
        values: [...] float; read only. Values outside the mask are ignored, NaN included.
        mask: [...] bool.
        group: ranks that hold the other tokens.

    Returns:
        smallest: [] float64, detached, equal on all ranks; +inf if no token is masked, NaN if a masked value is.
        largest: [] float64, likewise; -inf if no token is masked.

    Collectives: group: MAX [2, 2] float64.
    Gradient: none.
    """
    found = values.detach().double().reshape(-1)
    kept, nothing = mask.reshape(-1), found.new_full((1,), -math.inf)
    both = torch.stack([torch.cat([value.where(kept, -math.inf), nothing]).amax() for value in (-found, found)])
    negated_smallest, largest = all_reduce_max(both, group=group)
    return -negated_smallest, largest

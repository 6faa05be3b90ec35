"""The smallest and the largest of the masked values of a group. Shapes: [...] tokens of this rank, any shape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from megacov.ops.kernels.dispatch import runs_on
from megacov.ops.masked import check_mask, flat_blocks
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

    Raises:
        ValueError: if the shapes differ or the mask is not bool.
    """
    check_mask(values, mask)
    own = _own_extremes(values.detach().reshape(-1), mask.reshape(-1))
    negated_smallest, largest = all_reduce_max(own, group=group)
    return -negated_smallest, largest


def _own_extremes(values: Tensor, mask: Tensor) -> Tensor:
    """[2] float64: minus the smallest masked value of this rank, and the largest; -inf if none is masked."""
    if len(values) == 0:
        return values.new_full((2,), -math.inf, dtype=torch.float64)
    if values.dtype == torch.float32 and runs_on(values):
        from megacov.ops.kernels.extremes import extremes_of_programs  # with Triton, which not every machine has

        return extremes_of_programs(values, mask).double().amax(1)
    of_blocks = [
        torch.stack([-block.where(kept, math.inf).amin(), block.where(kept, -math.inf).amax()])
        for block, kept in flat_blocks(values, mask)
    ]
    return torch.stack(of_blocks).amax(0).double()

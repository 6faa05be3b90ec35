"""The smallest values whose mean keeps within a bound, over all ranks of a group. Shapes: [t] tokens of this rank.

A radix descent as in top_k.py, in histograms that hold the number and the sum of the values of each digit. Sums are in
the two parts of ops/masked.py, which float64 adds without rounding, so the result has the same bits in every layout.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from megacov.ops.masked import exact_parts
from megacov.parallel.collectives import all_reduce_sum
from megacov.selection.sort_keys import sort_keys, values_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

_DIGITS = ((21, 11), (10, 11), (0, 10))


class WithinMean(NamedTuple):
    """The smallest values whose mean keeps within a bound, and what was found on the way; equal in every layout.

    mask: [...] bool, of this rank's values.
    mean: [] float64, of all masked values of the group; NaN where there is none.
    limit: [] float64, the smallest value that is left out; NaN where none is.
    """

    mask: Tensor
    mean: Tensor
    limit: Tensor


def smallest_with_mean(values: Tensor, kept_mask: Tensor, *, bound: float, group: ProcessGroup | None) -> Tensor:
    """Mark the smallest masked values of `group`, as many as have a mean of at most `bound`.

    In other words, the largest values are left out until the mean of the rest is small enough. Equal values are marked
    together or not at all, so that no order matters.

    Args:
        values: [...] float32, no NaN where masked; read only. In sums a value counts to the nearest multiple of 2**-48.
        kept_mask: [...] bool; tokens outside it are never marked, whatever their values.
        bound: greatest mean.
        group: ranks that hold the other tokens; a rank without tokens must call this too.

    Returns:
        [...] bool, the same tokens in every layout.

    Collectives: group: SUM [3, 2048] float64 twice, then SUM [3, 1024] float64.
    Gradient: none.

    Raises:
        ValueError: if the values are not float32, or the shapes differ.
    """
    return within_mean(values, kept_mask, bound=bound, group=group).mask


def within_mean(values: Tensor, kept_mask: Tensor, *, bound: float, group: ProcessGroup | None) -> WithinMean:
    """As `smallest_with_mean`, with the mean of all values and the smallest one that is left out.

    Args:
        values: as there.
        kept_mask: as there.
        bound: as there.
        group: as there.

    Returns:
        Mask, mean and limit.

    Collectives: group: as there.
    Gradient: none.

    Raises:
        ValueError: as there.
    """
    if values.dtype != torch.float32:
        raise ValueError(f"values are {values.dtype}, but must be float32")
    flat, within = values.detach().reshape(-1), kept_mask.reshape(-1)
    keys = sort_keys(flat)[0] + (1 << 31)
    first_out = keys.new_zeros(())
    below = torch.zeros(3, 1, dtype=torch.float64, device=flat.device)  # both parts of the sum, and the number
    everything = below[:, 0]
    for shift, width in _DIGITS:
        digits = (keys >> shift) & ((1 << width) - 1)
        rows = torch.cat([exact_parts(flat, within), within.double().unsqueeze(0)])
        local = rows.new_zeros(3, 1 << width).index_add_(1, digits, rows)
        through = below + all_reduce_sum(local, group=group).cumsum(1)
        coarse, fine, count = through
        everything = through[:, -1] if shift == _DIGITS[0][0] else everything
        # The mean grows with the digit. The first one at which it is too large holds the first value that is left out;
        # if there is none, the digit found is beyond all.
        digit = (coarse + fine <= bound * count).long().cumprod(0).sum()
        below = torch.cat([below, through], dim=1).index_select(1, digit.view(1))
        first_out = first_out + (digit << shift)
        within = within & (digits == digit)
    mask = kept_mask & (keys < first_out).view(kept_mask.shape)
    limit = values_of(first_out.clamp(max=(1 << 32) - 1) - (1 << 31), values.dtype)
    mean = everything[:2].sum() / everything[2]
    return WithinMean(mask, mean, limit.where(first_out < 1 << 32, math.nan))

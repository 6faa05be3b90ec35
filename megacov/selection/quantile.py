"""An exact quantile over all ranks of a group, without gathering values. Shapes: [t] tokens of this rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from megacov.ops.extremes import masked_extremes
from megacov.parallel.collectives import all_reduce_sum
from megacov.selection.sort_keys import sort_keys, values_of
from megacov.selection.top_k import kth_largest_key

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def global_quantile(values: Tensor, kept_mask: Tensor, *, quantile: float, group: ProcessGroup | None) -> Tensor:
    """The value below which a share `quantile` of the N masked values of `group` lies, as numpy's default has it.

    With values in order, x_0 to x_(N-1), and p = quantile * (N - 1): x_floor(p) and its successor, interpolated by the
    fractional part of p. The two values are exact, found by a radix select, so the result has the same bits in every
    layout. NaN ranks below -inf.

    Args:
        values: [...] float16, bfloat16, float32 or float64; read only.
        kept_mask: [...] bool.
        quantile: share, in [0, 1].
        group: ranks that hold the other tokens; a rank without tokens must call this too.

    Returns:
        [] float64, detached, equal on all ranks; NaN if no token is masked.

    Collectives: group: SUM [] int64; SUM [2048] or [1024] int64, 3 times for floats up to 32 bits, else 6 times;
        MAX [2, 2] float64.
    Gradient: none.

    Raises:
        ValueError: if the quantile is not in [0, 1] or the dtype is none of these.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}, but must be a share: 0 <= quantile <= 1")
    flat, kept = values.detach().reshape(-1), kept_mask.reshape(-1)
    keys, num_bits = sort_keys(flat)
    number = all_reduce_sum(kept.sum(), group=group)
    place = (number - 1).double() * quantile
    key, rank, _ = kth_largest_key(keys, kept, number - place.floor().long(), num_bits, group)
    found = values_of(key, values.dtype)
    # The successor is an equal value if one has a higher rank, and else the smallest of the greater ones.
    smallest_above, _ = masked_extremes(flat, kept & (keys > key), group=group)
    successor = found.where(rank > 1, smallest_above)
    share = place - place.floor()
    between = found.where(share == 0, found + share * (successor - found))
    return between.where(number > 0, math.nan)

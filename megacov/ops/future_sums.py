"""Discounted sums over the rest of a response, whose tokens may be spread over context-parallel ranks.

t: response tokens of this rank, n: samples of an optimizer step, r: longest response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megacov.parallel.collectives import all_reduce_sum

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


@torch.no_grad()
def future_sums(
    values: Tensor,
    mask: Tensor,
    places: tuple[Tensor, Tensor],
    *,
    shape: tuple[int, int],
    discount: float,
    cp_group: ProcessGroup | None,
) -> Tensor:
    """The discounted sum of what comes after each token of its response.

        F_t = sum over k >= 1 of discount^k values_(t+k)

    Args:
        values: [t] float; read only.
        mask: [t] bool; other values count 0, NaN included.
        places: [t] int64 each, the sample of a token, in [0, n), and its place in the response, in [0, r).
        shape: n and r, the same on all ranks.
        discount: in [0, 1].
        cp_group: ranks that share the responses; each token is on one of them.

    Returns:
        [t] float64, the same in every layout.

    Collectives: cp_group: SUM [n, r] float64.
    Gradient: none.
    """
    # Every place is filled by one rank, so nothing is rounded in the sum over ranks.
    table = values.new_zeros(shape, dtype=torch.float64).index_put(places, values.double().where(mask, 0.0))
    table = all_reduce_sum(table, group=cp_group)
    sums, width = table, 1  # of `width` values from each place on
    while width < shape[1]:
        later = torch.zeros_like(sums)
        later[:, :-width] = sums[:, width:]
        sums, width = sums + discount**width * later, 2 * width
    return (sums - table)[places]

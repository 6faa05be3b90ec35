"""Sums over the tokens of each class, such as all tokens with one string, exact and over all ranks.

Shapes: t tokens of this rank, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from megacov.ops.masked import exact_parts
from megacov.parallel.collectives import all_reduce_sum

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def class_sums(
    divisions: Sequence[tuple[Tensor, int]], terms: Sequence[tuple[Tensor, Tensor]], *, group: ProcessGroup | None
) -> list[Tensor]:
    """Sums of several quantities over the masked tokens of each class, in one message for several divisions.

    The message has one size, whatever the tokens. The sums do not depend on the order of additions (see ops/masked.py),
    so they have the same bits in every layout, and also where a GPU adds in any order.

    Args:
        divisions: ways to divide the tokens into classes: the class of each token, [t] int64 in [0, k), and k; the same
            k on all ranks.
        terms: (values, mask), [t] float or bool and [t] bool; as many on all ranks. Values outside the mask are
            ignored, NaN included; one inside spoils its class alone.
        group: ranks that hold the other tokens.

    Returns:
        [number of terms, k] float64 a division, detached, equal on all ranks.

    Collectives: group: SUM [2 * number of terms, sum of all k] float64.
    Gradient: none.
    """
    parts = torch.cat([exact_parts(values, mask) for values, mask in terms])
    local = [parts.new_zeros(len(parts), size).index_add_(1, classes, parts) for classes, size in divisions]
    sums = all_reduce_sum(torch.cat(local, dim=1), group=group)
    whole = sums.view(len(terms), 2, -1).sum(dim=1)
    return list(whole.split([size for _, size in divisions], dim=1))

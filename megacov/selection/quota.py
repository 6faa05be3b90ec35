"""The number of tokens that a ratio selects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megacov.parallel.collectives import all_reduce_sum

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def selection_quota(kept_mask: Tensor, *, ratio: float, group: ProcessGroup | None) -> Tensor:
    """max(1, floor(ratio * N)) for N masked tokens over all ranks of `group`; 0 if N is 0.

    Args:
        kept_mask: [...] bool.
        ratio: a fraction, 0 < ratio <= 1.
        group: ranks that hold the other tokens.

    Returns:
        [] int64, equal on all ranks; it agrees with Python's int(ratio * N).

    Collectives: group: SUM [] int64.

    Raises:
        ValueError: if the ratio is not in (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio}, but must be a fraction: 0 < ratio <= 1")
    num_tokens = all_reduce_sum(kept_mask.sum(), group=group)
    share = (num_tokens.double() * ratio).floor().long()
    return torch.minimum(share.clamp(min=1), num_tokens)

"""Clip-Cov: selects random tokens in a band of high covariance, whose gradient the loss then removes.

Source: arXiv 2505.22617, equations 11 and 12. Shapes: [t] tokens of this rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacov.parallel.random import hash_64
from megacov.selection.quota import selection_quota
from megacov.selection.top_k import global_top_k

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def select_clip_cov(
    cov: Tensor,
    eligible_mask: Tensor,
    kept_mask: Tensor,
    token_ids: Tensor,
    *,
    ratio: float,
    lower: float,
    upper: float,
    seed: int,
    update: int,
    group: ProcessGroup | None,
) -> Tensor:
    """Mark max(1, floor(ratio * N)) random eligible tokens with lower < cov < upper, or all of them if there are fewer.

    N counts all masked tokens of `group`, eligible or not. The draw takes the largest hashes of seed, update and id.

    Args:
        cov: [...] float32, from megacov.ops.covariance; read only.
        eligible_mask: [...] bool; False for tokens that PPO's clip already leaves without gradient.
        kept_mask: [...] bool; tokens outside it are not eligible.
        token_ids: [...] int64, unique over the group.
        ratio: fraction of the masked tokens, 0 < ratio <= 1.
        lower: lower end of the band, exclusive.
        upper: upper end of the band, exclusive.
        seed: seed of the run.
        update: number of the optimizer step, so that each draws anew.
        group: ranks that hold the other tokens of the selection scope.

    Returns:
        [...] bool, the same tokens in every layout; none if the band is empty.

    Collectives: group: SUM [] int64, then those of global_top_k.
    Gradient: none.

    Raises:
        ValueError: if lower is not below upper.
    """
    if not lower < upper:
        raise ValueError(f"the band is empty: lower is {lower}, upper is {upper}")
    quota = selection_quota(kept_mask, ratio=ratio, group=group)
    in_band = band(cov, eligible_mask, kept_mask, lower=lower, upper=upper)
    return global_top_k(hash_64(seed, update, token_ids), in_band, token_ids, k=quota, group=group)


def band(cov: Tensor, eligible_mask: Tensor, kept_mask: Tensor, *, lower: float, upper: float) -> Tensor:
    """[...] bool: the tokens that Clip-Cov draws from. Both ends of the band are exclusive."""
    return kept_mask & eligible_mask & (cov > lower) & (cov < upper)

"""KL-Cov: selects the tokens with the largest covariance, on which the loss puts a KL penalty.

Source: arXiv 2505.22617, equations 13 and 14. Shapes: [t] tokens of this rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacov.ops.extremes import masked_extremes
from megacov.selection.quota import selection_quota
from megacov.selection.top_k import global_top_k

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def select_kl_cov(
    cov: Tensor,
    kept_mask: Tensor,
    token_ids: Tensor,
    *,
    ratio: float,
    group: ProcessGroup | None,
    min_cov: float | None = None,
    selects_among_equals: bool = False,
) -> Tensor:
    """Mark the max(1, floor(ratio * N)) largest covariances among the N masked tokens of `group`.

    Largest means the signed value, not the magnitude: these tokens tend to lower the entropy most.
    Equal covariances, as where every advantage is alike, name no token: then nothing is marked.

    Args:
        cov: [...] float32, from megacov.ops.covariance; read only.
        kept_mask: [...] bool.
        token_ids: [...] int64, unique over the group.
        ratio: fraction of the masked tokens, 0 < ratio <= 1.
        group: ranks that hold the other tokens of the selection scope.
        min_cov: a token is marked only if its covariance is above this, so fewer may be; None for no such bound.
        selects_among_equals: whether to mark the smallest token ids if all covariances are equal, as the published code
            does in effect.

    Returns:
        [...] bool, the same tokens in every layout; of equal covariances the smaller token id.

    Collectives: group: SUM [] int64; MAX [2, 2] float64 unless selects_among_equals; then those of global_top_k.
    Gradient: none.
    """
    quota = selection_quota(kept_mask, ratio=ratio, group=group)
    if not selects_among_equals:
        smallest, largest = masked_extremes(cov, kept_mask, group=group)
        quota = quota.where(smallest != largest, 0)
    candidates = kept_mask if min_cov is None else kept_mask & (cov > min_cov)
    return global_top_k(cov, candidates, token_ids, k=quota, group=group)

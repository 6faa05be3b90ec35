"""KL-Cov: selects the tokens with the largest covariance, on which the loss puts a KL penalty.

Source: arXiv 2505.22617, equations 13 and 14. Shapes: [t] tokens of this rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacov.selection.quota import selection_quota
from megacov.selection.top_k import global_top_k

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def select_kl_cov(
    cov: Tensor, kept_mask: Tensor, token_ids: Tensor, *, ratio: float, group: ProcessGroup | None
) -> Tensor:
    """Mark the max(1, floor(ratio * N)) largest covariances among the N masked tokens of `group`.

    Largest means the signed value, not the magnitude: these tokens tend to lower the entropy most.

    Args:
        cov: [...] float32, from megacov.ops.covariance; read only.
        kept_mask: [...] bool.
        token_ids: [...] int64, unique over the group.
        ratio: fraction of the masked tokens, 0 < ratio <= 1.
        group: ranks that hold the other tokens of the selection scope.

    Returns:
        [...] bool, the same tokens in every layout; of equal covariances the smaller token id.

    Collectives: group: SUM [] int64, then those of global_top_k.
    Gradient: none.
    """
    quota = selection_quota(kept_mask, ratio=ratio, group=group)
    return global_top_k(cov, kept_mask, token_ids, k=quota, group=group)

"""High-entropy selection: the tokens where the policy is least certain.

Source: Wang et al., "Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for
LLM Reasoning" (arXiv 2506.01939). Shapes: [t] tokens of this rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacov.selection.quota import selection_quota
from megacov.selection.top_k import global_top_k

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def select_high_entropy(
    entropy: Tensor, kept_mask: Tensor, token_ids: Tensor, *, ratio: float, group: ProcessGroup | None
) -> Tensor:
    """Mark the max(1, floor(ratio * N)) largest entropies among the N masked tokens of `group`.

    Args:
        entropy: [...] float32 nats, from megacov.ops; read only.
        kept_mask: [...] bool.
        token_ids: [...] int64, unique over the group.
        ratio: fraction of the masked tokens, 0 < ratio <= 1.
        group: ranks that hold the other tokens of the selection scope.

    Returns:
        [...] bool, the same tokens in every layout; of equal entropies the smaller token id.

    Collectives: group: SUM [] int64, then those of global_top_k.
    Gradient: none.
    """
    quota = selection_quota(kept_mask, ratio=ratio, group=group)
    return global_top_k(entropy, kept_mask, token_ids, k=quota, group=group)

"""Lp-Reg: selects the least probable tokens of each sign of the advantage, on which the loss puts a KL penalty.

Source: "Low-probability Tokens Sustain Exploration in Reinforcement Learning with Verifiable Reward" (arXiv
2510.03222). Shapes: [t] tokens of this rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megacov.selection.quota import selection_quota
from megacov.selection.top_k import global_top_k

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def select_lp_reg(
    log_probs: Tensor,
    advantages: Tensor,
    kept_mask: Tensor,
    token_ids: Tensor,
    *,
    negative_ratio: float,
    positive_ratio: float,
    group: ProcessGroup | None,
) -> Tensor:
    """Mark the max(1, floor(ratio * N)) smallest log-probs among the N tokens of either sign, each with its own ratio.

    The lowest share is that of the whole batch, as in the paper; of the tokens of one sign, as in the authors' code,
    where the paper is reported to take it of all and then to keep those of negative advantage. Their code takes it in
    each micro-batch, and there selects nothing where it would be a single token.

    Args:
        log_probs: [...] float32; read only.
        advantages: [...] float32; read only. A token of advantage 0 is of neither sign.
        kept_mask: [...] bool.
        token_ids: [...] int64, unique over the group.
        negative_ratio: fraction of the masked tokens of negative advantage, in [0, 1]; 0 selects none.
        positive_ratio: the same for those of positive advantage.
        group: ranks that hold the other tokens of the selection scope.

    Returns:
        [...] bool, the same tokens in every layout; of equal log-probs the smaller token id.

    Collectives: group: for each ratio above 0, SUM [] int64, then those of global_top_k.
    Gradient: none.
    """
    selected = torch.zeros_like(kept_mask)
    for ratio, is_of_sign in ((negative_ratio, advantages < 0), (positive_ratio, advantages > 0)):
        if ratio > 0:
            competing = kept_mask & is_of_sign
            quota = selection_quota(competing, ratio=ratio, group=group)
            selected = selected | global_top_k(-log_probs.detach(), competing, token_ids, k=quota, group=group)
    return selected

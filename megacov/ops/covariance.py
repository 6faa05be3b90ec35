"""Covariance of each token's log-prob and advantage.

Source: Cui et al., "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models"
(arXiv 2505.22617), equation 10. Shapes: [...] tokens of this rank, any shape, usually flat [t].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megacov.ops.kernels.dispatch import runs_on
from megacov.ops.masked import check_mask, exact_sum_parts, flat_blocks
from megacov.parallel.collectives import all_reduce_sum

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def covariance(log_probs: Tensor, advantages: Tensor, kept_mask: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Product of the centred log-prob and the centred advantage of each token.

    cov_i = (lp_i - mean lp) * (A_i - mean A), both means over every masked token of `group`. The sums behind the means
    do not depend on order (see ops/masked.py), so a token's covariance has the same bits in every layout.

    Args:
        log_probs: [...] float, log-probs of the sampled tokens under the policy being updated; read only.
        advantages: [...] float; read only.
        kept_mask: [...] bool; the other tokens are ignored, whatever their values.
        group: ranks that hold the other tokens of the selection scope.

    Returns:
        [...] float32, detached, 0 outside the mask.

    Collectives: group: SUM [5] float64.
    Gradient: none.

    Raises:
        ValueError: if the shapes differ or the mask is not bool.
    """
    check_mask(log_probs, kept_mask)
    check_mask(advantages, kept_mask)
    if runs_on(log_probs):
        from megacov.ops.kernels import covariance as kernels  # with Triton, which not every machine has

        flat = log_probs.reshape(-1), advantages.reshape(-1), kept_mask.reshape(-1)
        parts = all_reduce_sum(kernels.mean_parts(*flat), group=group)
        means = (parts[0:4:2] + parts[1:4:2]) / parts[4]
        return kernels.write_covariance(*flat, means=means).view(log_probs.shape)
    parts = torch.cat(
        [
            exact_sum_parts(log_probs, kept_mask),
            exact_sum_parts(advantages, kept_mask),
            kept_mask.sum(dtype=torch.float64).view(1),
        ]
    )
    log_prob_coarse, log_prob_fine, advantage_coarse, advantage_fine, count = all_reduce_sum(parts, group=group)
    mean_log_prob = (log_prob_coarse + log_prob_fine) / count
    mean_advantage = (advantage_coarse + advantage_fine) / count
    found = [
        ((own_log_probs.double() - mean_log_prob) * (own_advantages.double() - mean_advantage)).where(kept, 0.0).float()
        for own_log_probs, own_advantages, kept in flat_blocks(log_probs.detach(), advantages.detach(), kept_mask)
    ]
    return torch.cat(found).view(log_probs.shape)

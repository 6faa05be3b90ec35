"""M2PO: selects the tokens of largest log-ratio, until those that are left have a small second moment.

Source: "Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs?" (arXiv 2510.01161).
Shapes: [t] tokens of this rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacov.selection.mean_bound import within_mean

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def select_m2po(
    squares: Tensor, trusted_mask: Tensor, *, threshold: float, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mark the largest d^2, until the mean of the others among the masked tokens is at most the threshold.

    Args:
        squares: [...] float32, from `squared_log_ratios`; read only.
        trusted_mask: [...] bool, from `moving_away`: the tokens that may be left out, and over which means are taken.
        threshold: greatest mean of d^2.
        group: ranks that hold the other tokens of the selection scope.

    Returns:
        mask: [...] bool, the same tokens in every layout. Equal values are marked together, where the authors take one
            at a time.
        second moment: [] float64, the mean of d^2 before any is left out; NaN without a trusted token.
        limit: [] float64, the smallest |d| that is left out; NaN if none is.

    Collectives: group: those of within_mean.
    Gradient: none.
    """
    found = within_mean(squares, trusted_mask, bound=threshold, group=group)
    return trusted_mask & ~found.mask, found.mean, found.limit.sqrt()


def squared_log_ratios(log_probs: Tensor, rollout_log_probs: Tensor) -> Tensor:
    """[...] float32: d^2, where d is the policy's log-prob minus that of the server that sampled the token."""
    return (log_probs.detach().double() - rollout_log_probs.double()).square().float()


def moving_away(log_probs: Tensor, rollout_log_probs: Tensor, advantages: Tensor, kept_mask: Tensor) -> Tensor:
    """[...] bool: tokens that a gradient step moves farther from the server: d > 0 with A > 0, or d < 0 with A < 0."""
    d = log_probs.detach() - rollout_log_probs
    return kept_mask & (((advantages > 0) & (d > 0)) | ((advantages < 0) & (d < 0)))

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

    So has the paper's Algorithm 1. The authors' code (github.com/Infini-AI-Lab/M2PO) instead finds the t for which the
    mean of min(d^2, t^2) is the threshold, in each micro-batch, and clips ratios at exp(+-t): it leaves out at least as
    many tokens. Its d is to log-probs that the trainer computes at the rollout, here to those of the server.

    Args:
        squares: [...] float32, from `squared_log_ratios`; read only.
        trusted_mask: [...] bool, from `moving_away`: the tokens that may be left out, and over which means are taken.
        threshold: greatest mean of d^2.
        group: ranks that hold the other tokens of the selection scope.

    Returns:
        mask: [...] bool, the same tokens in every layout. Equal values are marked together, where the paper
            takes one at a time.
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

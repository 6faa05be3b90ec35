"""BAPO: PPO's surrogate with a range that follows the balance of positive and negative tokens.

t: response tokens of one micro-batch, laid flat. A = advantages, rho = exp(log_probs - old_log_probs).
"""

from __future__ import annotations

import torch

from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.types import LossBatch


@policy_loss(
    metrics={"bapo_clip_fraction": Metric("Tokens whose gradient BAPO's range cuts.", "share")}, needs_selection=True
)
def bapo(batch: LossBatch) -> TokenLosses:
    """Importance-weighted policy gradient, 0 at the selected tokens, which keep their place in the denominator.

    loss = -A rho       elsewhere
    loss = 0            at selected tokens

    The selection `bapo` finds the range of the optimizer step and selects the tokens beyond it. The gradient is that of
    PPO's surrogate with this range; the value leaves out the constants of clipped tokens.

    See "BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with Adaptive
    Clipping" (arXiv 2510.18927).

    Args:
        batch: [t] tensors with `selected`; masked tokens hold 0.

    Returns:
        Losses [t], and the tokens that are clipped (`bapo_clip_fraction`).

    Gradient: to batch.log_probs, 0 at selected tokens.
    """
    assert batch.selected is not None, "Loss checks needs_selection"
    losses = -batch.advantages * torch.exp(batch.log_probs - batch.old_log_probs)
    return TokenLosses(torch.where(batch.selected, 0.0, losses), {"bapo_clip_fraction": batch.selected})

"""Clip-Cov: a few tokens of high covariance take no part in the update.

t: response tokens of one micro-batch, laid flat.
"""

from __future__ import annotations

import torch

from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.losses.ppo_clip import PPO_METRICS, ppo_clip, ppo_clipped_tokens
from megacov.types import LossBatch


@policy_loss(
    metrics={
        **PPO_METRICS,
        "cov_clip_fraction": Metric("Tokens that Clip-Cov takes out of the update.", "share"),
    },
    needs_selection=True,
    clipped_tokens=ppo_clipped_tokens,
)
def clip_cov(
    batch: LossBatch, *, clip_low: float = 1.0, clip_high: float = 1.0, dual_clip: float | None = None
) -> TokenLosses:
    """PPO's loss, except at selected tokens, where it is 0.

    A selected token keeps its weight in the denominator: the others do not grow because it is gone.
    The wide default range only cuts extreme ratios, and leaves the restraint of entropy to the selection.

    See "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models" (arXiv 2505.22617), Clip-Cov.

    Args:
        batch: [t] tensors with `selected`; masked tokens hold 0.
        clip_low: the ratio may fall to 1 - clip_low, in [0, 1].
        clip_high: the ratio may rise to 1 + clip_high, >= 0.
        dual_clip: ratio above which a token of negative advantage is clipped, > 1; None for no dual clip.

    Returns:
        Losses [t]; PPO's metrics over all tokens, and apart from them the selected tokens (`cov_clip_fraction`).

    Gradient: to batch.log_probs, 0 at selected and at clipped tokens.
    """
    assert batch.selected is not None, "Loss checks needs_selection"
    ppo = ppo_clip.token_losses(batch, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    losses = torch.where(batch.selected, 0.0, ppo.losses)
    return TokenLosses(losses, {**ppo.metrics, "cov_clip_fraction": batch.selected})

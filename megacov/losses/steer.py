"""STEER: PPO's clipped surrogate, in which tokens that would change the entropy most count less.

t: response tokens of one micro-batch, laid flat. A = advantages, rho = exp(log_probs - old_log_probs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.losses.ppo_clip import PPO_METRICS, ppo_clip, ppo_clipped_tokens
from megacov.types import LossBatch


def steer_clipped_tokens(
    batch: LossBatch, *, clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float | None = 10.0
) -> Tensor:
    """Tokens without gradient: those that PPO's range or the dual clip cuts.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        clip_low: as in `steer`.
        clip_high: as in `steer`.
        dual_clip: as in `steer`.

    Returns:
        [t] bool.

    Gradient: none.
    """
    return ppo_clipped_tokens(batch, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


@policy_loss(
    metrics={
        **PPO_METRICS,
        "steer_weight": Metric("Mean of the weights that STEER gives; 1 where nothing is held back.", "-"),
    },
    needs_selection=True,
    clipped_tokens=steer_clipped_tokens,
)
def steer(
    batch: LossBatch, *, clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float | None = 10.0
) -> TokenLosses:
    """PPO's clipped surrogate with a weight for each token.

    loss = w max(-A rho, -A clamp(rho, 1 - clip_low, 1 + clip_high))      at selected tokens
    loss =   max(-A rho, -A clamp(rho, 1 - clip_low, 1 + clip_high))      elsewhere
    dual clip c: where A < 0, the maximum is at most -A c.

    The selection `steer` finds w = exp(-k |Omega|). Omega = A / p_old p (1 - p) (log p + H) estimates how a token's own
    gradient changes the entropy, and k sets the smallest w of the whole optimizer step. Tokens of a weight below 1
    count as selected.

    See "Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective" (arXiv 2510.10150). Range and dual
    clip are those of the authors' runs.

    Args:
        batch: [t] tensors with `selected` and `selection_weights`; masked tokens hold 0.
        clip_low: the ratio may fall to 1 - clip_low, in [0, 1].
        clip_high: the ratio may rise to 1 + clip_high, >= 0.
        dual_clip: ratio above which a token of negative advantage is clipped, > 1; None for no dual clip.

    Returns:
        Losses [t]; PPO's metrics, and the weights (`steer_weight`).

    Gradient: to batch.log_probs; none to the weights, which are constants of the optimizer step.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    assert batch.selected is not None, "Loss checks needs_selection"
    ppo = ppo_clip.token_losses(batch, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    weights = torch.ones_like(ppo.losses)
    if batch.selection_weights is not None:
        weights = torch.where(batch.selected, batch.selection_weights, weights)
    return TokenLosses(weights * ppo.losses, {**ppo.metrics, "steer_weight": weights})

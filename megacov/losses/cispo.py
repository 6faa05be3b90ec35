"""CISPO: the policy gradient of every token, with an importance weight that is cut instead of the token.

t: response tokens of one micro-batch, laid flat. A = advantages, rho = exp(log_probs - old_log_probs), sg: detached.
"""

from __future__ import annotations

import torch

from megacov.errors import ConfigError
from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.types import LossBatch


@policy_loss(
    metrics={"cispo_clip_fraction": Metric("Tokens whose importance weight CISPO cuts.", "share")},
    has_own_gradient=True,
)
def cispo(batch: LossBatch, *, clip_low: float = 1.0, clip_high: float = 6.0) -> TokenLosses:
    """Importance-weighted policy gradient whose weight is clipped: no token loses its gradient, as it does under PPO.

    loss = -sg(clamp(rho, 1 - clip_low, 1 + clip_high)) A log_prob

    The weight is detached, so the gradient is -weight A and not that of the value. With clip_low = 1 there is no lower
    bound, as the authors train; they tune the upper one.

    See "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention" (arXiv 2506.13585), CISPO.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        clip_low: the weight is at least 1 - clip_low, in [0, 1].
        clip_high: the weight is at most 1 + clip_high, >= 0.

    Returns:
        Losses [t], and the tokens whose weight is cut (`cispo_clip_fraction`).

    Gradient: to batch.log_probs.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ConfigError(f"clip_low is {clip_low} and clip_high is {clip_high}: they must be in [0, 1] and >= 0.")
    ratio = torch.exp(batch.log_probs.detach() - batch.old_log_probs)
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return TokenLosses(-weight * batch.advantages * batch.log_probs, {"cispo_clip_fraction": weight != ratio})

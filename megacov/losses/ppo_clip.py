"""PPO's clipped policy loss, with a range that may be asymmetric (clip-higher) and an optional dual clip.

t: response tokens of one micro-batch, laid flat. A = advantages, rho = exp(log_probs - old_log_probs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.types import LossBatch

PPO_METRICS = {
    "ppo_clip_fraction": Metric("Tokens whose gradient PPO's range cuts.", "share"),
    "dual_clip_fraction": Metric("Tokens of negative advantage whose gradient the dual clip cuts.", "share"),
}


def ppo_clipped_tokens(
    batch: LossBatch, *, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None
) -> Tensor:
    """Tokens whose gradient the range or the dual clip cuts to 0.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        clip_low: as in `ppo_clip`.
        clip_high: as in `ppo_clip`.
        dual_clip: as in `ppo_clip`.

    Returns:
        [t] bool.

    Gradient: none.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    _check_range(clip_low, clip_high, dual_clip)
    ratio = torch.exp(batch.log_probs - batch.old_log_probs)
    clipped = _beyond_range(ratio, batch.advantages, clip_low, clip_high)
    return clipped if dual_clip is None else clipped | _beyond_dual_clip(ratio, batch.advantages, dual_clip)


@policy_loss(metrics=PPO_METRICS, clipped_tokens=ppo_clipped_tokens)
def ppo_clip(
    batch: LossBatch, *, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None
) -> TokenLosses:
    """Pessimistic surrogate: a token earns nothing for moving its ratio beyond the range that its advantage favours.

    loss = max(-A rho, -A clamp(rho, 1 - clip_low, 1 + clip_high))
    dual clip c: where A < 0, loss = min(loss, -A c), so that one token of a huge ratio cannot rule the update.

    See "Proximal Policy Optimization Algorithms" (arXiv 1707.06347), "DAPO" (arXiv 2503.14476) for
    clip_high > clip_low, and "Mastering Complex Control in MOBA Games" (arXiv 1912.09729) for the dual clip.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        clip_low: the ratio may fall to 1 - clip_low, in [0, 1].
        clip_high: the ratio may rise to 1 + clip_high, >= 0.
        dual_clip: ratio above which a token of negative advantage is clipped, > 1; None for no dual clip.

    Returns:
        Losses [t], and the tokens cut by the range (`ppo_clip_fraction`) and by the dual clip (`dual_clip_fraction`).

    Gradient: to batch.log_probs, 0 at clipped tokens.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    _check_range(clip_low, clip_high, dual_clip)
    advantages = batch.advantages
    ratio = torch.exp(batch.log_probs - batch.old_log_probs)
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    metrics = {"ppo_clip_fraction": _beyond_range(ratio, advantages, clip_low, clip_high)}
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual_clip), losses)
        metrics["dual_clip_fraction"] = _beyond_dual_clip(ratio, advantages, dual_clip)
    return TokenLosses(losses, metrics)


def _beyond_range(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))


def _beyond_dual_clip(ratio: Tensor, advantages: Tensor, dual_clip: float) -> Tensor:
    return (advantages < 0) & (ratio > dual_clip)


def _check_range(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ConfigError(f"clip_low is {clip_low} and clip_high is {clip_high}: they must be in [0, 1] and >= 0.")
    if dual_clip is not None and not dual_clip > 1:
        raise ConfigError(f"dual_clip is {dual_clip}: it is a ratio above 1 (3 is usual), or null for no dual clip.")

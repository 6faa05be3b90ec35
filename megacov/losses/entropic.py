"""EntroPIC: likely tokens of positive and of negative advantage weigh more or less, as the entropy needs it.

t: response tokens of one micro-batch, laid flat. A = advantages, rho = exp(log_probs - old_log_probs), p =
exp(log_probs).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.losses.ppo_clip import PPO_METRICS, ppo_clip, ppo_clipped_tokens
from megacov.types import LossBatch


def entropic_clipped_tokens(
    batch: LossBatch,
    *,
    alpha: float = 0.0,
    threshold: float = 0.95,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """Tokens without gradient: those that PPO's clip cuts, unless they are likely and alpha is not 0.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        alpha: as in `entropic`.
        threshold: as in `entropic`.
        clip_low: as in `entropic`.
        clip_high: as in `entropic`.
        dual_clip: as in `entropic`.

    Returns:
        [t] bool.

    Gradient: none.
    """
    clipped = ppo_clipped_tokens(batch, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    advantages = batch.advantages
    likely = torch.where(_is_likely(batch, threshold), alpha * advantages.abs(), 0.0)
    return torch.where(clipped, 0.0, advantages) + likely == 0


@policy_loss(
    metrics={
        **PPO_METRICS,
        "entropic_likely_fraction": Metric("Tokens more likely than EntroPIC's threshold.", "share"),
    },
    clipped_tokens=entropic_clipped_tokens,
    is_policy_gradient_at_old=False,
)
def entropic(
    batch: LossBatch,
    *,
    alpha: float = 0.0,
    threshold: float = 0.95,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> TokenLosses:
    """PPO's clipped surrogate, and for likely tokens a term that does not see the clip.

    loss = ppo_clip - alpha rho |A|     where p > threshold
    loss = ppo_clip                     elsewhere

    Within PPO's range, likely tokens of positive advantage weigh 1 + alpha and those of negative advantage 1 - alpha: a
    positive alpha lowers the entropy and a negative one raises it. The controller `entropic` sets alpha for each step;
    at 0 this is PPO.

    See "EntroPIC: Towards Stable Long-Term Training of LLMs via Entropy Stabilization with Proportional-Integral
    Control" (arXiv 2511.15248). In the authors' code the term is a mean over the likely tokens of a micro-batch, which
    gives it more weight the fewer they are; here it has the weights of the policy loss, as 1 + alpha and 1 - alpha ask.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        alpha: weight of the term, in [-1, 1].
        threshold: probability above which a token is likely, under the current policy, in (0, 1).
        clip_low: as in `ppo_clip`.
        clip_high: as in `ppo_clip`.
        dual_clip: as in `ppo_clip`; the authors' code has 3.

    Returns:
        Losses [t]; PPO's metrics, and the likely tokens (`entropic_likely_fraction`).

    Gradient: to batch.log_probs; which tokens are likely has none.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    if not (-1 <= alpha <= 1 and 0 < threshold < 1):
        raise ConfigError(f"alpha is {alpha} and threshold is {threshold}: they must be in [-1, 1] and in (0, 1).")
    ppo = ppo_clip.token_losses(batch, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    is_likely = _is_likely(batch, threshold)
    ratio = torch.exp(batch.log_probs - batch.old_log_probs)
    losses = ppo.losses - torch.where(is_likely, alpha * ratio * batch.advantages.abs(), 0.0)
    return TokenLosses(losses, {**ppo.metrics, "entropic_likely_fraction": is_likely})


def _is_likely(batch: LossBatch, threshold: float) -> Tensor:
    return batch.log_probs.detach() > math.log(threshold)

"""CE-GPPO: tokens beyond PPO's range keep a bounded gradient in place of none.

t: response tokens of one micro-batch, laid flat. A = advantages, rho = exp(log_probs - old_log_probs), sg: detached.
"""

from __future__ import annotations

import torch

from megacov.errors import ConfigError
from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.types import LossBatch


@policy_loss(
    metrics={
        "ce_gppo_low_fraction": Metric("Tokens of negative advantage whose ratio is below CE-GPPO's range.", "share"),
        "ce_gppo_high_fraction": Metric("Tokens of positive advantage whose ratio is above CE-GPPO's range.", "share"),
    },
    has_own_gradient=True,
)
def ce_gppo(
    batch: LossBatch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    beta_low: float = 0.75,
    beta_high: float = 1.0,
) -> TokenLosses:
    """PPO's surrogate, in which a token beyond the range has the gradient of the range's end times a weight.

    loss = -beta_low  (1 - clip_low)  (rho / sg(rho)) A     where A < 0 and rho < 1 - clip_low
    loss = -beta_high (1 + clip_high) (rho / sg(rho)) A     where A > 0 and rho > 1 + clip_high
    loss = -rho A                                           elsewhere

    Beyond the range the gradient is -beta (1 -+ clip) A, and the value does not change with rho. A larger beta_low
    drives unlikely wrong tokens out for good and lowers the entropy; a larger beta_high lets unlikely right tokens in
    and raises it. Both at 0 would be PPO's clip.

    See "CE-GPPO: Coordinating Entropy via Gradient-Preserving Clipping Policy Optimization in Reinforcement Learning"
    (arXiv 2509.20712): beta_low is 0.75 at 7B and 0.5 at 1.5B, beta_high 1.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        clip_low: the range begins at 1 - clip_low, in [0, 1].
        clip_high: the range ends at 1 + clip_high, >= 0.
        beta_low: weight of the tokens below the range (the paper's beta_1), > 0.
        beta_high: weight of the tokens above the range (the paper's beta_2), > 0.

    Returns:
        Losses [t]; the tokens below (`ce_gppo_low_fraction`) and above the range (`ce_gppo_high_fraction`).

    Gradient: to batch.log_probs.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ConfigError(f"clip_low is {clip_low} and clip_high is {clip_high}: they must be in [0, 1] and >= 0.")
    if not (beta_low > 0 and beta_high > 0):
        raise ConfigError(f"beta_low is {beta_low} and beta_high is {beta_high}: set both above 0.")
    advantages = batch.advantages
    ratio = torch.exp(batch.log_probs - batch.old_log_probs)
    is_low = (advantages < 0) & (ratio.detach() < 1 - clip_low)
    is_high = (advantages > 0) & (ratio.detach() > 1 + clip_high)
    # rho / sg(rho) as exp(lp - sg(lp)), which is 1 and cannot be 0 / 0.
    one = torch.exp(batch.log_probs - batch.log_probs.detach())
    losses = torch.where(is_low, -beta_low * (1 - clip_low) * one * advantages, -ratio * advantages)
    losses = torch.where(is_high, -beta_high * (1 + clip_high) * one * advantages, losses)
    return TokenLosses(losses, {"ce_gppo_low_fraction": is_low, "ce_gppo_high_fraction": is_high})

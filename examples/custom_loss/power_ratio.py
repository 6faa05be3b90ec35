"""A policy loss outside of the package: `algorithm.loss: {name: "examples.custom_loss.power_ratio:power_ratio"}`."""

from __future__ import annotations

import torch

from megacov.errors import ConfigError
from megacov.losses import Metric, TokenLosses, policy_loss
from megacov.types import LossBatch


@policy_loss(metrics={"power_weight": Metric("Mean of rho^power, the weight of a token's policy gradient.", "-")})
def power_ratio(batch: LossBatch, *, power: float = 0.5) -> TokenLosses:
    """Policy gradient weighted with a power of the importance ratio.

    loss = -A rho^power / power,    gradient = -A rho^power

    power = 1 is the importance-weighted policy gradient, power -> 0 the unweighted one: less variance, more bias.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        power: exponent of the ratio, in (0, 1].

    Returns:
        Losses [t], and the weight (`power_weight`).

    Gradient: to batch.log_probs.

    Raises:
        ConfigError: a power out of its range.
    """
    if not 0 < power <= 1:
        raise ConfigError(f"algorithm.loss.power is {power}: set it above 0 and at most 1.")
    weight = torch.exp(power * (batch.log_probs - batch.old_log_probs))
    return TokenLosses(-batch.advantages * weight / power, {"power_weight": weight.detach()})

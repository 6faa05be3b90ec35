"""SAPO: a soft gate on the importance ratio in place of PPO's hard clip.

t: response tokens of one micro-batch, laid flat. A = advantages, rho = exp(log_probs - old_log_probs).
"""

from __future__ import annotations

import torch

from megacov.errors import ConfigError
from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.types import LossBatch


@policy_loss(
    metrics={
        "sapo_gate": Metric("SAPO's factor on the gradient rho A of a token: 1 at rho = 1, towards 0 far from it.", "-")
    }
)
def sapo(batch: LossBatch, *, tau_positive: float = 1.0, tau_negative: float = 1.05) -> TokenLosses:
    """Surrogate that flattens out on both sides of the old policy, sooner for a greater temperature tau.

    loss     = -A (4 / tau) sigmoid(tau (rho - 1)),    tau = tau_positive where A > 0, else tau_negative
    gradient = -A rho gate,                            gate = 4 sigmoid(tau (rho - 1)) sigmoid(-tau (rho - 1))

    The factor 4 / tau makes the gate 1 at rho = 1, where the gradient is that of the plain policy gradient. A negative
    advantage spreads a token's probability over all others, so the authors damp it sooner.

    See "Soft Adaptive Policy Optimization" (arXiv 2511.20347).

    Args:
        batch: [t] tensors; masked tokens hold 0.
        tau_positive: temperature of tokens of positive advantage, > 0.
        tau_negative: temperature of the others, > 0.

    Returns:
        Losses [t], and the gate (`sapo_gate`).

    Gradient: to batch.log_probs.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    if not (tau_positive > 0 and tau_negative > 0):
        raise ConfigError(f"tau_positive is {tau_positive} and tau_negative is {tau_negative}: set both above 0.")
    tau = torch.full_like(batch.advantages, tau_negative).masked_fill(batch.advantages > 0, tau_positive)
    soft_step = torch.sigmoid(tau * (torch.exp(batch.log_probs - batch.old_log_probs) - 1))
    gate = 4 * soft_step.detach() * (1 - soft_step.detach())
    return TokenLosses(-batch.advantages * (4 / tau) * soft_step, {"sapo_gate": gate})

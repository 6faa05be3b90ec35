"""DPPO with the binary total variation: a token's trust region is a change of its probability, not of its ratio.

t: response tokens of one micro-batch, laid flat. A = advantages, p = exp(log_probs), p_old = exp(old_log_probs), where
the old log-probs are the rollout server's; rho = p / p_old, sg: detached.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.types import LossBatch


def dppo_clipped_tokens(
    batch: LossBatch, *, max_fall: float = 0.2, max_rise: float = 0.2, max_ratio: float = 20.0
) -> Tensor:
    """Tokens whose gradient the trust region cuts to 0.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        max_fall: as in `dppo`.
        max_rise: as in `dppo`.
        max_ratio: as in `dppo`.

    Returns:
        [t] bool.

    Gradient: none.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    if not (0 <= max_fall <= 1 and 0 <= max_rise <= 1 and max_ratio >= 1):
        raise ConfigError(
            f"max_fall is {max_fall}, max_rise is {max_rise} and max_ratio is {max_ratio}: the first two must be in"
            " [0, 1], the third at least 1."
        )
    rise = batch.log_probs.detach().exp() - batch.old_log_probs.exp()
    return ((batch.advantages > 0) & (rise > max_rise)) | ((batch.advantages < 0) & (rise < -max_fall))


@policy_loss(
    metrics={"dppo_clip_fraction": Metric("Tokens that DPPO's trust region leaves without gradient.", "share")},
    clipped_tokens=dppo_clipped_tokens,
    has_own_gradient=True,
    is_anchored_at_rollout=True,
)
def dppo(batch: LossBatch, *, max_fall: float = 0.2, max_rise: float = 0.2, max_ratio: float = 20.0) -> TokenLosses:
    """Importance-weighted policy gradient; a token outside the trust region, on the side it is pushed to, has none.

    M    = [p - p_old <= max_rise] where A > 0, [p - p_old >= -max_fall] where A < 0
    loss = -A sg(min(rho, max_ratio)) log_prob M

    |p - p_old| is the total variation between the two policies, seen as sampling this token or any other. A likely
    token leaves the region by a small change of its ratio, an unlikely one only by a large change. The weight is
    detached, so the gradient is -A min(rho, max_ratio) M and not that of the value.

    p_old is the policy that sampled the token, with the server's own arithmetic. So trust region and weight also cover
    the mismatch between server and trainer; a rollout correction would count that twice and is refused.

    See "Rethinking the Trust Region in LLM Reinforcement Learning" (arXiv 2602.04879), DPPO-Binary-TV.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        max_fall: probability that a token of negative advantage may lose, in [0, 1].
        max_rise: probability that a token of positive advantage may gain, in [0, 1].
        max_ratio: largest importance weight, >= 1.

    Returns:
        Losses [t], and the tokens outside the trust region (`dppo_clip_fraction`).

    Gradient: to batch.log_probs, 0 at clipped tokens.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    clipped = dppo_clipped_tokens(batch, max_fall=max_fall, max_rise=max_rise, max_ratio=max_ratio)
    weight = torch.exp(batch.log_probs.detach() - batch.old_log_probs).clamp(max=max_ratio)
    losses = torch.where(clipped, 0.0, -batch.advantages * weight * batch.log_probs)
    return TokenLosses(losses, {"dppo_clip_fraction": clipped})

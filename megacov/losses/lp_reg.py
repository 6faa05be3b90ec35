"""Lp-Reg: improbable tokens that the old policy did not take for noise are kept from vanishing.

t: response tokens of one micro-batch, laid flat. A = advantages, rho = exp(log_probs - old_log_probs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses.kl import k3_up_to
from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.losses.ppo_clip import PPO_METRICS, ppo_clip, ppo_clipped_tokens
from megacov.types import LossBatch

# Nats. Where q keeps all entries it is the old policy but for rounding, so in the first update x is 0 but for less than
# this, and its sign would depend on the layout.
ROUNDING = 1e-5


def lp_reg_clipped_tokens(
    batch: LossBatch,
    *,
    kl_coef: float = 1.0,
    min_p: float = 0.02,
    max_gap: float = 2.6,
    clip_low: float = 1.0,
    clip_high: float = 9.0,
) -> Tensor:
    """Tokens without gradient where none is selected: those that PPO's range cuts.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        kl_coef: as in `lp_reg`.
        min_p: as in `lp_reg`.
        max_gap: as in `lp_reg`.
        clip_low: as in `lp_reg`.
        clip_high: as in `lp_reg`.

    Returns:
        [t] bool.

    Gradient: none.
    """
    _check(kl_coef, min_p, max_gap)
    return ppo_clipped_tokens(batch, clip_low=clip_low, clip_high=clip_high)


@policy_loss(
    metrics={
        "ppo_clip_fraction": PPO_METRICS["ppo_clip_fraction"],
        "lp_reg_fraction": Metric("Tokens that Lp-Reg pulls back.", "share"),
        "lp_reg_penalty": Metric("Lp-Reg's penalty times its coefficient; 0 counts for any other token.", "nats"),
    },
    needs_selection=True,
    needs_filtered_old=True,
    clipped_tokens=lp_reg_clipped_tokens,
)
def lp_reg(
    batch: LossBatch,
    *,
    kl_coef: float = 1.0,
    min_p: float = 0.02,
    max_gap: float = 2.6,
    clip_low: float = 1.0,
    clip_high: float = 9.0,
) -> TokenLosses:
    """PPO's clipped surrogate, and a penalty on improbable tokens that have become less likely than they were.

    loss = -A rho + kl_coef k3(x)      at selected tokens with x > 1e-5, where x = log q - log_prob
    loss = max(-A rho, -A clamp(rho, 1 - clip_low, 1 + clip_high))                      elsewhere
    k3(x) = exp(x) - 1 - x, and beyond x = max_gap its tangent there
    q: the old policy without the entries below min_p times its largest probability, renormalized; 0 for those.

    The selection `lp_reg` chooses the least probable tokens of negative advantage. One that q leaves out (x = -inf) is
    taken for noise and gets no penalty.

    See "Low-probability Tokens Sustain Exploration in Reinforcement Learning with Verifiable Reward" (arXiv
    2510.03222). The paper writes the penalty as KL(q || policy) over the vocabulary; the authors' code, like this,
    estimates it at the sampled token, where the gradient 1 - q / p of the estimate has the same mean over the policy's
    own tokens. These are the old policy's, so a token that the policy has since left would hold the whole gradient.
    Where the estimate reaches 10, at a gap of 2.6 nats, their code cuts it, and the token has no gradient any more;
    here the gradient stays what it is there.

    Args:
        batch: [t] tensors with `selected` and `filtered_old_log_probs`; masked tokens hold 0.
        kl_coef: weight of the penalty (the paper's beta), >= 0.
        min_p: share of the largest probability below which an entry is noise, in (0, 1]. The trainer filters by it.
        max_gap: x up to which the penalty's gradient grows, in (0, 50].
        clip_low: the ratio may fall to 1 - clip_low, in [0, 1].
        clip_high: the ratio may rise to 1 + clip_high, >= 0.

    Returns:
        Losses [t]; the tokens cut by the range (`ppo_clip_fraction`), those with a penalty (`lp_reg_fraction`), and the
        weighted penalty (`lp_reg_penalty`).

    Gradient: to batch.log_probs.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    _check(kl_coef, min_p, max_gap)
    assert batch.selected is not None, "Loss checks needs_selection"
    assert batch.filtered_old_log_probs is not None, "the trainer gives filtered log-probs"
    ppo = ppo_clip.token_losses(batch, clip_low=clip_low, clip_high=clip_high)
    is_pulled = batch.selected & (batch.filtered_old_log_probs - batch.log_probs.detach() > ROUNDING)
    # The others get a gap of 0 before exp, since an infinite one would make their gradient NaN.
    gap = torch.where(is_pulled, batch.filtered_old_log_probs, batch.log_probs) - batch.log_probs
    penalty = kl_coef * k3_up_to(gap, max_gap)
    unclipped = -batch.advantages * torch.exp(batch.log_probs - batch.old_log_probs)
    return TokenLosses(
        torch.where(is_pulled, unclipped + penalty, ppo.losses),
        {**ppo.metrics, "lp_reg_fraction": is_pulled, "lp_reg_penalty": penalty.detach()},
    )


def _check(kl_coef: float, min_p: float, max_gap: float) -> None:
    if kl_coef < 0 or not 0 < min_p <= 1 or not 0 < max_gap <= 50:
        raise ConfigError(
            f"kl_coef is {kl_coef}, min_p is {min_p} and max_gap is {max_gap}: they must be >= 0, in (0, 1] and in "
            "(0, 50]."
        )

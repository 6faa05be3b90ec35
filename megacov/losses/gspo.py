"""GSPO: PPO's clip on the importance ratio of a whole sequence instead of a token.

t: response tokens of one micro-batch, laid flat. A = advantages, d = log_probs - old_log_probs, sg: detached.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.types import LossBatch


def gspo_clipped_tokens(batch: LossBatch, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Tensor:
    """Tokens of the sequences whose gradient the range cuts to 0.

    Args:
        batch: [t] tensors with sequence sums; masked tokens hold 0.
        clip_low: as in `gspo`.
        clip_high: as in `gspo`.

    Returns:
        [t] bool.

    Gradient: none.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ConfigError(f"clip_low is {clip_low} and clip_high is {clip_high}: they must be in [0, 1] and >= 0.")
    ratio, advantages = _sequence_ratio(batch), batch.advantages
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))


@policy_loss(
    metrics={
        "gspo_clip_fraction": Metric("Tokens of the sequences whose gradient GSPO's range cuts.", "share"),
        "gspo_ratio": Metric("Geometric mean of a sequence's importance ratios; near 1.", "-"),
    },
    needs_sequence_sums=True,
    clipped_tokens=gspo_clipped_tokens,
    has_own_gradient=True,
)
def gspo(batch: LossBatch, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> TokenLosses:
    """Pessimistic surrogate with one ratio a sequence, which all of its tokens share.

    s_i  = exp(mean of d over the kept tokens of sequence i)
    s_it = sg(s_i) exp(log_prob_it - sg(log_prob_it))       has the value s_i, and token t's own gradient
    loss = max(-A s_it, -A clamp(s_it, 1 - clip_low, 1 + clip_high))

    This is the token-level form of the paper: where a sequence has one advantage, with the aggregation
    sequence_mean_token_mean, and without an entropy mask or a masking rollout correction (which leave tokens out of
    s_i), value and gradient are those of its sequence-level form. The sums over whole sequences are
    detached, so the gradient -A s_i is not that of the value.

    See "Group Sequence Policy Optimization" (arXiv 2507.18071), GSPO-token.

    Args:
        batch: [t] tensors with sequence sums; masked tokens hold 0.
        clip_low: the sequence's ratio may fall to 1 - clip_low, in [0, 1].
        clip_high: the sequence's ratio may rise to 1 + clip_high, >= 0.

    Returns:
        Losses [t], the tokens cut by the range (`gspo_clip_fraction`) and the sequence's ratio (`gspo_ratio`).

    Gradient: to batch.log_probs, 0 at clipped tokens.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    clipped = gspo_clipped_tokens(batch, clip_low=clip_low, clip_high=clip_high)
    advantages, sequence_ratio = batch.advantages, _sequence_ratio(batch)
    ratio = sequence_ratio * torch.exp(batch.log_probs - batch.log_probs.detach())
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    return TokenLosses(losses, {"gspo_clip_fraction": clipped, "gspo_ratio": sequence_ratio})


def _sequence_ratio(batch: LossBatch) -> Tensor:
    assert batch.sequence_log_ratio is not None and batch.sequence_tokens is not None, "Loss checks needs_sequence_sums"
    return torch.exp(batch.sequence_log_ratio / batch.sequence_tokens)

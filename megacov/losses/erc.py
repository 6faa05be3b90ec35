"""ERC: a token learns only while its entropy is near that of the old policy, beside PPO's clip.

t: response tokens of one micro-batch, laid flat. A = advantages, rho = exp(log_probs - old_log_probs), H: entropy of
the distribution that the token was drawn from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.losses.ppo_clip import PPO_METRICS, ppo_clip, ppo_clipped_tokens
from megacov.types import LossBatch


def erc_clipped_tokens(
    batch: LossBatch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    entropy_low: float = 0.95,
    entropy_high: float = 1.05,
) -> Tensor:
    """Tokens without gradient: those that PPO's range cuts, and where entropies are known those beyond ERC's.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        clip_low: as in `erc`.
        clip_high: as in `erc`.
        entropy_low: as in `erc`.
        entropy_high: as in `erc`.

    Returns:
        [t] bool.

    Gradient: none.
    """
    clipped = ppo_clipped_tokens(batch, clip_low=clip_low, clip_high=clip_high)
    if batch.entropy is None or batch.old_entropy is None:
        return clipped
    return clipped | _is_beyond(batch.entropy, batch.old_entropy, entropy_low, entropy_high)


@policy_loss(
    metrics={**PPO_METRICS, "erc_clip_fraction": Metric("Tokens whose entropy has left ERC's range.", "share")},
    clipped_tokens=erc_clipped_tokens,
    needs_old_entropy=True,
)
def erc(
    batch: LossBatch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    entropy_low: float = 0.95,
    entropy_high: float = 1.05,
) -> TokenLosses:
    """PPO's clipped surrogate, without the tokens whose entropy has moved too far.

    loss = max(-A rho, -A clamp(rho, 1 - clip_low, 1 + clip_high))      where entropy_low <= H / H_old <= entropy_high
    loss = 0                                                            elsewhere

    PPO's range sees the sampled token alone; the ratio of entropies sees the whole distribution. Both are compared as
    products, so a token of entropy 0 under both policies is within the range.

    See "Entropy Ratio Clipping as a Soft Global Constraint for Stable Reinforcement Learning" (arXiv 2512.05591). The
    authors add it to DAPO, hence the range of the ratio. The bounds 0.95 and 1.05 are those of all their released
    scripts (github.com/Kwai-Klear/ERC), whose configuration has 0.8 and 1.2 where a script sets none. Their scripts
    also have a dual clip of 10, and their code adds 1e-8 to both entropies, so that it keeps more of the tokens whose
    entropy is below that.

    Args:
        batch: [t] tensors with `entropy` and `old_entropy`; masked tokens hold 0.
        clip_low: the ratio may fall to 1 - clip_low, in [0, 1].
        clip_high: the ratio may rise to 1 + clip_high, >= 0.
        entropy_low: smallest H / H_old with a gradient, in [0, 1].
        entropy_high: largest H / H_old with a gradient, >= 1.

    Returns:
        Losses [t]; PPO's metrics over all tokens, and apart from them the tokens beyond ERC's range
        (`erc_clip_fraction`).

    Gradient: to batch.log_probs, none to the entropies; 0 at clipped tokens.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    if not 0 <= entropy_low <= 1 <= entropy_high:
        raise ConfigError(
            f"entropy_low is {entropy_low} and entropy_high is {entropy_high}: let 1 in, the ratio of equal entropies."
        )
    assert batch.entropy is not None and batch.old_entropy is not None, "the trainer gives entropies"
    ppo = ppo_clip.token_losses(batch, clip_low=clip_low, clip_high=clip_high)
    is_beyond = _is_beyond(batch.entropy, batch.old_entropy, entropy_low, entropy_high)
    return TokenLosses(torch.where(is_beyond, 0.0, ppo.losses), {**ppo.metrics, "erc_clip_fraction": is_beyond})


def _is_beyond(entropy: Tensor, old: Tensor, lowest: float, highest: float) -> Tensor:
    entropy = entropy.detach()
    return (entropy < lowest * old) | (entropy > highest * old)

"""REPO-R: PPO's clipped surrogate with advantages that grow or shrink with how unlikely a token is.

t: response tokens of one micro-batch, laid flat. A = advantages, rho = exp(log_probs - old_log_probs), z = zeta.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.losses.ppo_clip import PPO_METRICS, ppo_clip, ppo_clipped_tokens
from megacov.types import LossBatch


def repo_r_clipped_tokens(
    batch: LossBatch,
    *,
    zeta: float = 0.01,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """Tokens without gradient: those that PPO's clip cuts, and those whose advantage is scaled to 0.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        zeta: as in `repo_r`.
        clip_low: as in `repo_r`.
        clip_high: as in `repo_r`.
        dual_clip: as in `repo_r`.

    Returns:
        [t] bool.

    Gradient: none.
    """
    scaled = _scaled(batch, zeta)
    clipped = ppo_clipped_tokens(scaled, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    return clipped | (scaled.advantages == 0)


@policy_loss(
    metrics={
        **PPO_METRICS,
        "repo_r_scale": Metric("Advantage over the one that REPO-R was given; 1 if that is 0.", "-"),
    },
    clipped_tokens=repo_r_clipped_tokens,
    has_own_gradient=True,
    is_policy_gradient_at_old=False,
)
def repo_r(
    batch: LossBatch,
    *,
    zeta: float = 0.01,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> TokenLosses:
    """PPO's clipped surrogate with scaled advantages.

    loss = ppo_clip with A' for A
    A' = max(0, A (1 - z sg(log_prob)))     where A > 0
    A' = min(0, A (1 + z sg(log_prob)))     where A < 0

    The log-prob is the current policy's. A positive z strengthens unlikely right tokens and spares unlikely wrong ones,
    which raises the entropy; a negative z lowers it; at 0 this is PPO. No advantage changes its sign. The controller
    `repo_r` sets z for each step.

    See REPO-R in "Entropy-Preserving Reinforcement Learning" (arXiv 2603.11682, appendix D.2), which puts the log-prob
    in the place of its distance from the expected one. The authors have published no code.

    Args:
        batch: [t] tensors; masked tokens hold 0.
        zeta: z above, in [-1, 1], per nat.
        clip_low: as in `ppo_clip`.
        clip_high: as in `ppo_clip`.
        dual_clip: as in `ppo_clip`.

    Returns:
        Losses [t]; PPO's metrics, and A' / A (`repo_r_scale`).

    Gradient: to batch.log_probs through rho alone, 0 at clipped tokens and where A' is 0.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    if not -1 <= zeta <= 1:
        raise ConfigError(f"zeta is {zeta}: set it between -1 and 1.")
    scaled = _scaled(batch, zeta)
    ppo = ppo_clip.token_losses(scaled, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    given = batch.advantages
    scale = torch.where(given == 0, 1.0, scaled.advantages / torch.where(given == 0, 1.0, given))
    return TokenLosses(ppo.losses, {**ppo.metrics, "repo_r_scale": scale})


def _scaled(batch: LossBatch, zeta: float) -> LossBatch:
    scale = 1 - zeta * batch.advantages.sign() * batch.log_probs.detach()
    return replace(batch, advantages=batch.advantages * scale.clamp(min=0))

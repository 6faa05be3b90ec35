"""Correction of the mismatch between the server that sampled a token and the trainer that learns from it.

t: response tokens of one rank, laid flat.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.errors import ConfigError

_MODES = ("truncate", "mask")


def importance_weights(log_ratios: Tensor, *, mode: str, lower: float, upper: float) -> tuple[Tensor, Tensor]:
    """Weights w = p_trainer / p_rollout that make an average over rollout samples one over the trainer's old policy.

    truncate: min(w, upper), of every token; bounds the variance and keeps a bias.
    mask:     w where lower <= w <= upper; the other tokens take no part.

    See "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (Yao et al., 2025) for truncation, and
    "Every Step Evolves: Scaling Reinforcement Learning for Trillion-Scale Thinking Model" (arXiv 2510.18855) for masks.

    Args:
        log_ratios: [t] float, log p_trainer - log p_rollout, of the token or of its whole sequence.
        mode: "truncate" or "mask".
        lower: smallest w that is not masked; "mask" alone reads it.
        upper: largest w.

    Returns:
        weights [t] float32, and [t] bool that is False where a token takes no part. Weights there are 0.

    Gradient: none.

    Raises:
        ConfigError: unknown mode, or bounds that do not hold 1.
    """
    if mode not in _MODES:
        raise ConfigError(f"rollout_correction.mode is {mode!r}: set it to one of {', '.join(_MODES)}.")
    if not lower <= 1 <= upper:
        raise ConfigError(f"rollout_correction lets in {lower} to {upper}: let 1 in, the weight of equal policies.")
    weights = log_ratios.detach().double().exp()
    if mode == "truncate":
        return weights.clamp(max=upper).float(), torch.ones_like(weights, dtype=torch.bool)
    is_kept = (weights >= lower) & (weights <= upper)
    return torch.where(is_kept, weights, 0.0).float(), is_kept

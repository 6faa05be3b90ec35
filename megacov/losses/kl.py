"""Per-token estimates of a KL divergence from samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from megacov.errors import ConfigError

_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_ratio: -log_ratio,
    "abs": lambda log_ratio: log_ratio.abs(),
    "k2": lambda log_ratio: log_ratio.square() / 2,
    # expm1, since exp(x) - 1 loses every digit of a small x in float32.
    "k3": lambda log_ratio: torch.expm1(log_ratio) - log_ratio,
}


def estimate_kl(log_ratio: Tensor, *, estimator: str) -> Tensor:
    """Estimate KL(q || p) at each token x drawn from q, given log_ratio = log p(x) - log q(x).

    k1  = -log_ratio                       unbiased, negative as often as not
    abs = |log_ratio|                      not an estimate of KL, but a penalty on a move either way
    k2  = log_ratio^2 / 2                  biased by third order, >= 0
    k3  = exp(log_ratio) - 1 - log_ratio   unbiased, >= 0

    q is whatever the tokens were drawn from, so the direction is the caller's: KL-Cov's q is the old policy and its p
    the new one; for a reference KL, q is the policy itself and p the reference.
    See "Approximating KL Divergence" by J. Schulman (http://joschu.net/blog/kl-approx.html).

    Args:
        log_ratio: [t] float.
        estimator: "k1", "abs", "k2" or "k3".

    Returns:
        [t] float, nats.

    Gradient: to log_ratio.

    Raises:
        ConfigError: unknown estimator.
    """
    if estimator not in _ESTIMATORS:
        raise ConfigError(f"KL estimator {estimator!r} is unknown: choose one of {', '.join(sorted(_ESTIMATORS))}.")
    return _ESTIMATORS[estimator](log_ratio)


def k3_up_to(log_ratio: Tensor, max_gap: float) -> Tensor:
    """k3 up to log_ratio = max_gap, and its tangent there beyond, so that a few tokens cannot hold the whole gradient.

    Args:
        log_ratio: [t] float.
        max_gap: nats, > 0.

    Returns:
        [t] float, nats.

    Gradient: to log_ratio, at most exp(max_gap) - 1.
    """
    within = log_ratio.clamp(max=max_gap)
    return estimate_kl(within, estimator="k3") + math.expm1(max_gap) * (log_ratio - within)

"""KL-Cov: the tokens of highest covariance are held near the old policy.

t: response tokens of one micro-batch, laid flat. A = advantages, d = log_probs - old_log_probs.
"""

from __future__ import annotations

import torch

from megacov.errors import ConfigError
from megacov.losses.kl import estimate_kl
from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.types import LossBatch

_ESTIMATORS = ("abs", "k2", "k3")


@policy_loss(
    metrics={
        "kl_selected_fraction": Metric("Tokens that KL-Cov penalises.", "share"),
        "kl_penalty": Metric("KL-Cov's penalty times its coefficient; 0 counts for a token not selected.", "nats"),
    },
    needs_selection=True,
)
def kl_cov(batch: LossBatch, *, kl_coef: float = 1.0, estimator: str = "abs") -> TokenLosses:
    """Importance-weighted policy gradient without a clip, plus a penalty on selected tokens.

    loss = -A exp(d)                             elsewhere
    loss = -A exp(d) + kl_coef * penalty(d)      at selected tokens
    penalty: abs |d|, as the authors publish it; k2 d^2 / 2; k3 exp(d) - 1 - d.

    The tokens were drawn from the old policy, so k2 and k3 estimate KL(old || new) and k3's gradient is, on average,
    its gradient. (The k3 of most reference-KL code, exp(-d) - 1 + d, is for tokens drawn from the new policy.)
    k1 is refused: -d is no penalty, it rewards every rise of a selected token without end.
    At d = 0, hence in the first update of a rollout batch, each penalty has gradient 0.

    See "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models" (arXiv 2505.22617), KL-Cov.

    Args:
        batch: [t] tensors with `selected`; masked tokens hold 0.
        kl_coef: weight of the penalty (the paper's beta), >= 0.
        estimator: "abs", "k2" or "k3".

    Returns:
        Losses [t]; the selected tokens (`kl_selected_fraction`) and the weighted penalty (`kl_penalty`).

    Gradient: to batch.log_probs.

    Raises:
        ConfigError: a hyperparameter is out of its range.
    """
    assert batch.selected is not None, "Loss checks needs_selection"
    if kl_coef < 0 or estimator not in _ESTIMATORS:
        raise ConfigError(
            f"kl_coef is {kl_coef} and estimator is {estimator!r}:"
            f" they must be >= 0 and one of {', '.join(_ESTIMATORS)}."
        )
    d = batch.log_probs - batch.old_log_probs
    penalty = torch.where(batch.selected, kl_coef * estimate_kl(d, estimator=estimator), 0.0)
    losses = -batch.advantages * torch.exp(d) + penalty
    return TokenLosses(losses, {"kl_selected_fraction": batch.selected, "kl_penalty": penalty.detach()})

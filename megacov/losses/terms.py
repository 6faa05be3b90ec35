"""Terms that may be added to any policy loss: an entropy bonus and a penalty on the distance to a reference policy.

t: response tokens of one micro-batch, laid flat.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses.kl import estimate_kl, k3_up_to
from megacov.losses.loss import Metric, sum_over_kept_tokens
from megacov.types import LossBatch, LossOutput

TERM_METRICS = {
    "ref_kl": Metric(
        "KL(new || reference) by algorithm.ref_kl_estimator, as if tokens came from the new policy; no coefficient.",
        "nats",
    )
}
"""Metrics of the terms, whatever the loss."""

_REF_KL_ESTIMATORS = ("k1", "k2", "k3")
_LARGEST_GAP = 50.0  # exp(50) still fits into float32 with room for a sum


def add_terms(
    output: LossOutput,
    batch: LossBatch,
    *,
    entropy_coef: float = 0.0,
    ref_kl_coef: float = 0.0,
    ref_kl_estimator: str = "k3",
    ref_kl_max_gap: float | None = None,
) -> LossOutput:
    """Add the entropy bonus and the reference KL, with the weights of the policy loss.

    loss = policy loss - entropy_coef * sum_i w_i H_i + ref_kl_coef * sum_i w_i KL_i
    KL_i estimates KL(new || ref) from d = log_probs - ref_log_probs, tokens taken as drawn from the new policy:
    k1 d; k2 d^2 / 2; k3 exp(-d) - 1 + d. On such tokens the gradient of k1 is 0 on average, that of k2 is the gradient
    of KL(new || ref), that of k3 is the gradient of KL(ref || new). A term of weight 0 is left out, gradient and all.
    k3's gradient grows as exp(-d): one token 20 nats below the reference outweighs 10^8 others. With c = ref_kl_max_gap
    k3 goes on as its tangent at d = -c below that, so such a token is still pulled back, with the slope 1 - exp(c) of a
    token at -c. (A cut of d or of the value, as is common, takes the gradient from the tokens that are farthest off.)

    Args:
        output: of a policy loss on the same batch; not changed.
        batch: [t] tensors; `entropy` where entropy_coef is not 0, `ref_log_probs` where ref_kl_coef is not 0.
        entropy_coef: weight of the entropy bonus, per nat.
        ref_kl_coef: weight of the reference KL, per nat.
        ref_kl_estimator: "k1", "k2" or "k3".
        ref_kl_max_gap: c above, nats in (0, 50]; None for none. k3 alone reads it.

    Returns:
        The loss with its terms; the metrics with the sum `ref_kl`, wherever reference log-probs are given.

    Gradient: to batch.log_probs through the reference KL, to batch.entropy through the bonus.

    Raises:
        ConfigError: unknown estimator, or a gap out of its range.
    """
    if ref_kl_max_gap is not None and not 0 < ref_kl_max_gap <= _LARGEST_GAP:
        raise ConfigError(f"ref_kl_max_gap is {ref_kl_max_gap}: set it above 0 and to at most {_LARGEST_GAP:g} nats.")
    if ref_kl_estimator not in _REF_KL_ESTIMATORS:
        raise ConfigError(f"ref_kl_estimator is {ref_kl_estimator!r}: choose one of {', '.join(_REF_KL_ESTIMATORS)}.")
    loss, metrics, kept_mask = output.loss, dict(output.metrics), batch.kept_mask
    weights = torch.where(kept_mask, batch.token_weights, 0.0)
    if entropy_coef != 0:
        assert batch.entropy is not None, "an entropy bonus needs the entropy"
        loss = loss - entropy_coef * (weights * torch.where(kept_mask, batch.entropy, 0.0)).sum()
    if batch.ref_log_probs is not None:
        ref_log_ratio = torch.where(kept_mask, batch.ref_log_probs, 0.0) - torch.where(kept_mask, batch.log_probs, 0.0)
        ref_kl = _estimate(ref_log_ratio, estimator=ref_kl_estimator, max_gap=ref_kl_max_gap)
        metrics["ref_kl"] = sum_over_kept_tokens(ref_kl, kept_mask)
        loss = loss if ref_kl_coef == 0 else loss + ref_kl_coef * (weights * ref_kl).sum()
    assert ref_kl_coef == 0 or batch.ref_log_probs is not None, "a reference KL needs reference log-probs"
    return LossOutput(loss, metrics)


def _estimate(ref_log_ratio: Tensor, *, estimator: str, max_gap: float | None) -> Tensor:
    """[t] nats: the estimate of KL(new || reference); k3's tangent beyond a gap of max_gap."""
    if max_gap is None or estimator != "k3":
        return estimate_kl(ref_log_ratio, estimator=estimator)
    return k3_up_to(ref_log_ratio, max_gap)

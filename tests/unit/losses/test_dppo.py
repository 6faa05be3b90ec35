"""DPPO (binary TV): values and gradients worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses import get_loss
from megacov.types import LossBatch

HYPERPARAMETERS = [{"max_fall": 0.05, "max_rise": 0.1, "max_ratio": 1.5}]
LAYOUT_HYPERPARAMETERS = {"max_fall": 0.005, "max_rise": 0.01, "max_ratio": 1.05}

# advantage, p_old, p -> weight (0: outside the trust region); 0.2 may be gained, 0.1 lost, weights are at most 4
CASES = [
    (2.0, 0.5, 0.5, 1.0),
    (2.0, 0.5, 0.6, 1.2),
    (2.0, 0.5, 0.75, 0.0),  # gained 0.25
    (2.0, 0.5, 0.25, 0.5),  # a gain to come back
    (-2.0, 0.5, 0.45, 0.9),
    (-2.0, 0.5, 0.375, 0.0),  # lost 0.125
    (-2.0, 0.5, 0.75, 1.5),
    (2.0, 0.01, 0.03, 3.0),  # three times as likely, and still within
    (2.0, 0.01, 0.08, 4.0),  # the weight is cut
    (-2.0, 0.95, 0.84, 0.0),  # PPO's range would let this pass
    (0.0, 0.5, 0.9, 1.8),
]


def gradient(batch: LossBatch, *, max_fall: float, max_rise: float, max_ratio: float) -> Tensor:
    """-A min(rho, max_ratio), or 0 outside the trust region."""
    new, old, advantages = batch.log_probs.exp(), batch.old_log_probs.exp(), batch.advantages
    is_out = torch.where(advantages > 0, new - old > max_rise, old - new > max_fall) & (advantages != 0)
    return torch.where(is_out, 0.0, -advantages * (new / old).clamp(max=max_ratio))


@pytest.mark.parametrize(("advantage", "old", "new", "weight"), CASES)
def test_hand_computed(advantage, old, new, weight, one_token):
    batch = replace(
        one_token(advantage, 1.0),
        log_probs=torch.tensor([log(new)], dtype=torch.float64, requires_grad=True),
        old_log_probs=torch.tensor([log(old)], dtype=torch.float64),
    )
    hyperparameters = {"max_fall": 0.1, "max_rise": 0.2, "max_ratio": 4.0}
    output = get_loss("dppo")(batch, **hyperparameters)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-weight * advantage * log(new), abs=1e-12)
    assert batch.log_probs.grad.item() == pytest.approx(-weight * advantage, abs=1e-12)
    assert output.metrics["dppo_clip_fraction"] == (weight == 0)
    assert get_loss("dppo").clipped(batch, **hyperparameters).item() == (weight == 0)


def test_an_open_region_is_the_importance_weighted_policy_gradient(make_batch):
    batch = make_batch(50)
    log_probs = batch.log_probs.clone().requires_grad_()
    wide = {"max_fall": 1.0, "max_rise": 1.0, "max_ratio": 1e9}
    get_loss("dppo")(replace(batch, log_probs=log_probs), **wide).loss.backward()
    ratio = (batch.log_probs - batch.old_log_probs).exp()
    # Probabilities of the batch may exceed 1, and so leave even this region.
    inside = batch.kept_mask & ((batch.log_probs.exp() - batch.old_log_probs.exp()).abs() <= 1)
    expected = -batch.token_weights * batch.advantages * ratio
    torch.testing.assert_close(log_probs.grad[inside], expected[inside])
    assert inside.sum() > 20


@pytest.mark.parametrize("wrong", [{"max_fall": -0.1}, {"max_fall": 1.1}, {"max_rise": 2.0}, {"max_ratio": 0.5}])
def test_impossible_hyperparameters_are_refused(wrong, make_batch):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        get_loss("dppo")(make_batch(4), **wrong)

"""CE-GPPO: values and gradients worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses import get_loss
from megacov.types import LossBatch

HYPERPARAMETERS = [{"clip_low": 0.1, "clip_high": 0.5, "beta_low": 0.3, "beta_high": 2.0}]
LAYOUT_HYPERPARAMETERS = {"clip_low": 0.02, "clip_high": 0.03}

# advantage, ratio -> loss, gradient; the range is 0.8 to 1.25, weights are 0.5 below and 2 above
CASES = [
    (2.0, 1.0, -2.0, -2.0),
    (2.0, 1.2, -2.4, -2.4),
    (2.0, 4.0, -5.0, -5.0),  # 2 * 1.25 * 2
    (2.0, 0.1, -0.2, -0.2),  # below the range, where a positive advantage leads back
    (-2.0, 0.9, 1.8, 1.8),
    (-2.0, 0.1, 0.8, 0.8),  # 0.5 * 0.8 * 2
    (-2.0, 4.0, 8.0, 8.0),
    (0.0, 4.0, 0.0, 0.0),
]


def gradient(batch: LossBatch, *, clip_low: float, clip_high: float, beta_low: float, beta_high: float) -> Tensor:
    """-A rho, or at the ends of the range -A times a constant."""
    factor = (batch.log_probs - batch.old_log_probs).exp()
    is_low, is_high = factor < 1 - clip_low, factor > 1 + clip_high
    factor = torch.where(is_low & (batch.advantages < 0), beta_low * (1 - clip_low), factor)
    return -batch.advantages * torch.where(is_high & (batch.advantages > 0), beta_high * (1 + clip_high), factor)


@pytest.mark.parametrize(("advantage", "ratio", "loss", "slope"), CASES)
def test_hand_computed(advantage, ratio, loss, slope, one_token):
    batch = one_token(advantage, ratio)
    output = get_loss("ce_gppo")(batch, clip_low=0.2, clip_high=0.25, beta_low=0.5, beta_high=2.0)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss, abs=1e-12)
    assert batch.log_probs.grad.item() == pytest.approx(slope, abs=1e-12)
    assert output.metrics["ce_gppo_low_fraction"] == (advantage < 0 and ratio < 0.8)
    assert output.metrics["ce_gppo_high_fraction"] == (advantage > 0 and ratio > 1.25)


def test_with_tiny_weights_it_is_ppo(make_batch):
    batch = make_batch(80)
    found = {}
    for name, settings in {"ce_gppo": {"beta_low": 1e-13, "beta_high": 1e-13}, "ppo_clip": {}}.items():
        log_probs = batch.log_probs.clone().requires_grad_()
        get_loss(name)(make_batch(80, log_probs=log_probs), **settings).loss.backward()
        found[name] = log_probs.grad
    torch.testing.assert_close(found["ce_gppo"], found["ppo_clip"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio", [1e-30, 1e30])
def test_a_ratio_far_away_has_a_bounded_gradient(ratio, one_token):
    batch = one_token(-1.0 if ratio < 1 else 1.0, ratio)
    get_loss("ce_gppo")(batch).loss.backward()
    assert batch.log_probs.grad.abs().item() <= 1.2


@pytest.mark.parametrize("wrong", [{"clip_low": 1.1}, {"clip_high": -0.1}, {"beta_low": 0.0}, {"beta_high": -1.0}])
def test_impossible_hyperparameters_are_refused(wrong, make_batch):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        get_loss("ce_gppo")(make_batch(4), **wrong)

"""SAPO: values and gradients worked out by hand."""

from __future__ import annotations

import pytest
import torch

from megacov.errors import ConfigError
from megacov.losses import get_loss

HYPERPARAMETERS = [{"tau_positive": 5.0, "tau_negative": 10.0}]
LAYOUT_HYPERPARAMETERS = {"tau_positive": 5.0, "tau_negative": 8.0}

# advantage, ratio -> loss, gradient; tau is 1 for A > 0 and 2 for A < 0; sigmoid(1) = 0.7310586, sigmoid(2) = 0.8807971
CASES = [
    (2.0, 1.0, -4.0, -2.0),  # -2 * 4 * 0.5; the gradient of the plain policy gradient
    (-2.0, 1.0, 2.0, 2.0),  # 2 * 2 * 0.5
    (2.0, 2.0, -5.8484686, -3.1457909),  # -2 * 4 * 0.7310586; -2 * 4 * 0.1966119 * 2
    (-2.0, 2.0, 3.5231883, 1.6798974),  # 2 * 2 * 0.8807971; 2 * 4 * 0.1049936 * 2
    (0.0, 2.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("advantage", "ratio", "loss", "gradient"), CASES)
def test_hand_computed(advantage, ratio, loss, gradient, one_token):
    batch = one_token(advantage, ratio)
    output = get_loss("sapo")(batch, tau_positive=1.0, tau_negative=2.0)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss, rel=1e-6, abs=1e-12)
    assert batch.log_probs.grad.item() == pytest.approx(gradient, rel=1e-6, abs=1e-12)
    if advantage:
        assert output.metrics["sapo_gate"].item() == pytest.approx(gradient / (-advantage * ratio), rel=1e-6)


def test_a_small_temperature_is_the_importance_weighted_policy_gradient(make_batch):
    batch = make_batch(50)
    log_probs = batch.log_probs.clone().requires_grad_()
    get_loss("sapo")(make_batch(50, log_probs=log_probs), tau_positive=1e-7, tau_negative=1e-7).loss.backward()
    expected = -batch.token_weights * batch.advantages * (batch.log_probs - batch.old_log_probs).exp()
    torch.testing.assert_close(log_probs.grad, torch.where(batch.kept_mask, expected, 0.0), rtol=1e-6, atol=1e-12)


def test_a_greater_temperature_shuts_sooner(one_token):
    gates = [get_loss("sapo")(one_token(-1.0, 2.0), tau_negative=tau).metrics["sapo_gate"] for tau in (0.5, 1.0, 4.0)]
    assert gates == sorted(gates, reverse=True)


@pytest.mark.parametrize("wrong", [{"tau_positive": 0.0}, {"tau_negative": -1.0}])
def test_impossible_temperatures_are_refused(wrong, make_batch):
    assert get_loss("sapo")(make_batch(4)).loss.isfinite()
    with pytest.raises(ConfigError, match="set both above 0"):
        get_loss("sapo")(make_batch(4), **wrong)

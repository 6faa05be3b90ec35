"""CISPO: values and gradients worked out by hand."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses import get_loss
from megacov.types import LossBatch

HYPERPARAMETERS = [{"clip_low": 0.2, "clip_high": 0.2}]
LAYOUT_HYPERPARAMETERS = {"clip_low": 0.1, "clip_high": 0.1}

# advantage, ratio -> weight, is it cut; with weights in [0.75, 3]
CASES = [
    (2.0, 1.0, 1.0, False),
    (2.0, 2.5, 2.5, False),
    (2.0, 4.0, 3.0, True),
    (-2.0, 4.0, 3.0, True),  # cut, and not left without gradient, whatever the sign
    (2.0, 0.5, 0.75, True),
    (-2.0, 0.5, 0.75, True),
    (-2.0, 0.8, 0.8, False),
    (0.0, 4.0, 3.0, True),
]


def gradient(batch: LossBatch, *, clip_low: float, clip_high: float) -> Tensor:
    """-A clamp(rho, 1 - clip_low, 1 + clip_high)."""
    weight = (batch.log_probs - batch.old_log_probs).exp().clamp(1 - clip_low, 1 + clip_high)
    return -batch.advantages * weight


@pytest.mark.parametrize(("advantage", "ratio", "weight", "is_cut"), CASES)
def test_hand_computed(advantage, ratio, weight, is_cut, one_token):
    batch = one_token(advantage, ratio)
    output = get_loss("cispo")(batch, clip_low=0.25, clip_high=2.0)
    output.loss.backward()
    # The old log-prob is 0, so that log(ratio) is the log-prob itself.
    assert output.loss.item() == pytest.approx(-weight * advantage * log(ratio), abs=1e-12)
    assert batch.log_probs.grad.item() == pytest.approx(-weight * advantage, abs=1e-12)
    assert output.metrics["cispo_clip_fraction"] == is_cut


def test_the_published_range_has_no_lower_bound(one_token):
    for ratio, weight in ((1e-6, 1e-6), (6.9, 6.9), (7.5, 7.0)):
        batch = one_token(1.0, ratio)
        get_loss("cispo")(batch).loss.backward()
        assert batch.log_probs.grad.item() == pytest.approx(-weight)


def test_without_a_bound_the_gradient_is_that_of_the_importance_weighted_loss(make_batch):
    batch = make_batch(50)
    found, expected = (batch.log_probs.clone().requires_grad_() for _ in range(2))
    ratio = (expected - batch.old_log_probs).exp()
    (batch.token_weights * torch.where(batch.kept_mask, -batch.advantages * ratio, 0.0)).sum().backward()
    get_loss("cispo")(make_batch(50, log_probs=found), clip_high=1e9).loss.backward()
    torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.parametrize("wrong", [{"clip_low": 1.5}, {"clip_low": -0.1}, {"clip_high": -1.0}])
def test_impossible_ranges_are_refused(wrong, make_batch):
    with pytest.raises(ConfigError, match=r"clip_low is .* clip_high is"):
        get_loss("cispo")(make_batch(4), **wrong)

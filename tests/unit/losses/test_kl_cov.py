"""KL-Cov: hand-computed values, the plain loss without a selection, and the published formula with its selection."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

from megacov.errors import ConfigError
from megacov.losses import get_loss
from megacov.ops import covariance
from megacov.selection import select_kl_cov

HYPERPARAMETERS = [{"kl_coef": 0.5, "estimator": "k2"}, {"kl_coef": 2.0, "estimator": "k3"}]


def published_loss(log_probs, old_log_probs, advantages, *, ratio, kl_coef):
    """The authors' KL-Cov on one micro-batch: -A exp(d), plus kl_coef |d| on the top covariances, mean over tokens."""
    d = log_probs - old_log_probs
    with torch.no_grad():
        covs = (log_probs - log_probs.mean()) * (advantages - advantages.mean())
        num_selected = max(1, int(ratio * len(covs)))
        selected = torch.topk(covs, num_selected, largest=True).indices
    losses = -advantages * d.exp()
    losses_kl = -advantages * d.exp() + kl_coef * d.abs()
    losses[selected] = losses_kl[selected]
    return losses.mean()


@pytest.mark.parametrize(
    ("ratio", "estimator", "penalty", "slope"),
    [
        (2.0, "abs", log(2), 1.0),
        (0.5, "abs", log(2), -1.0),
        (2.0, "k2", log(2) ** 2 / 2, log(2)),
        (0.5, "k2", log(2) ** 2 / 2, -log(2)),
        (2.0, "k3", 2 - 1 - log(2), 1.0),  # d exp(d) - 1 = ratio - 1
        (0.5, "k3", 0.5 - 1 + log(2), -0.5),
        (1.0, "abs", 0.0, 0.0),  # the first update of a rollout batch
    ],
)
def test_hand_computed(ratio, estimator, penalty, slope, one_token):
    for selected in (False, True):
        batch = one_token(-3.0, ratio, selected=selected)
        output = get_loss("kl_cov")(batch, kl_coef=0.5, estimator=estimator)
        output.loss.backward()
        assert output.loss.item() == pytest.approx(3 * ratio + 0.5 * penalty * selected)
        assert batch.log_probs.grad.item() == pytest.approx(3 * ratio + 0.5 * slope * selected)
        assert output.metrics["kl_selected_fraction"] == selected
        assert output.metrics["kl_penalty"].item() == pytest.approx(0.5 * penalty * selected)


def test_nothing_is_clipped(one_token):
    assert get_loss("kl_cov")(one_token(2.0, 50.0)).loss.item() == pytest.approx(-100.0)


def test_an_empty_selection_is_the_plain_policy_gradient(make_batch):
    batch = make_batch(100, selected=torch.zeros(100, dtype=torch.bool))
    plain = get_loss("ppo_clip")(batch, clip_low=1.0, clip_high=1e9)
    for estimator in ("abs", "k2", "k3"):
        assert torch.equal(get_loss("kl_cov")(batch, kl_coef=7.0, estimator=estimator).loss, plain.loss)


@pytest.mark.parametrize("ratio", [2e-4, 2e-3, 0.05, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_micro_batch_scope_equals_the_published_formula(ratio, dtype, make_batch):
    num_tokens = 500
    batch = make_batch(
        num_tokens,
        dtype=dtype,
        kept_mask=torch.ones(num_tokens, dtype=torch.bool),
        token_weights=torch.full((num_tokens,), 1 / num_tokens, dtype=dtype),
    )
    cov = covariance(batch.log_probs, batch.advantages, batch.kept_mask, group=None)
    selected = select_kl_cov(cov, batch.kept_mask, torch.arange(num_tokens), ratio=ratio, group=None)
    log_probs = batch.log_probs.clone().requires_grad_()
    reference = batch.log_probs.double().clone().requires_grad_()
    got = get_loss("kl_cov")(replace(batch, log_probs=log_probs, selected=selected), kl_coef=1.0, estimator="abs").loss
    expected = published_loss(
        reference, batch.old_log_probs.double(), batch.advantages.double(), ratio=ratio, kl_coef=1.0
    )
    got.backward()
    expected.backward()
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_probs.grad.double(), reference.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"estimator": "k1"}, {"estimator": "kl"}, {"kl_coef": -1.0}])
def test_impossible_hyperparameters_are_refused(wrong, make_batch):
    with pytest.raises(ConfigError, match=r"kl_coef is .* estimator is"):
        get_loss("kl_cov")(make_batch(4), **wrong)

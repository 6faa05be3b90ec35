"""Clip-Cov: hand-computed values, the plain loss without a selection, and the published formula with its selection."""

from __future__ import annotations

import pytest
import torch

from megacov.losses import get_loss
from megacov.ops import covariance
from megacov.selection import select_clip_cov

HYPERPARAMETERS = [{"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}]
RANGE = {"clip_low": 1.0, "clip_high": 1.0, "dual_clip": None}


def published_covariance(log_probs, advantages):
    """Cov(y_i) = (log pi(y_i) - mean_j log pi(y_j)) (A(y_i) - mean_j A(y_j)), over the tokens of the micro-batch."""
    return (log_probs - log_probs.mean()) * (advantages - advantages.mean())


def published_loss(log_probs, old_log_probs, advantages, picked):
    """mean_i corr_i max(-A ratio, -A clamp(ratio, 1 - low, 1 + high)), corr = 0 at the picked tokens, else 1."""
    ratio = (log_probs - old_log_probs).exp()
    corr = torch.ones_like(ratio)
    corr[picked] = 0
    return (torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.0, 2.0)) * corr).mean()


def test_hand_computed(one_token):
    for selected, loss, gradient in ((False, -3.0, -3.0), (True, 0.0, 0.0)):
        batch = one_token(2.0, 1.5, selected=selected)
        output = get_loss("clip_cov")(batch, **RANGE)
        output.loss.backward()
        assert output.loss.item() == pytest.approx(loss)
        assert batch.log_probs.grad.item() == pytest.approx(gradient)
        assert output.metrics["cov_clip_fraction"] == selected
        assert output.metrics["ppo_clip_fraction"] == 0


def test_ppo_clip_and_covariance_clip_are_counted_apart(make_batch):
    batch = make_batch(200)
    metrics = get_loss("clip_cov")(batch, clip_low=0.2, clip_high=0.2).metrics
    assert metrics["cov_clip_fraction"] == (batch.selected & batch.kept_mask).sum()
    assert metrics["ppo_clip_fraction"] == get_loss("ppo_clip")(batch).metrics["ppo_clip_fraction"] > 0


def test_an_empty_selection_is_the_ppo_loss(make_batch):
    batch = make_batch(100, selected=torch.zeros(100, dtype=torch.bool))
    for clip_range in (RANGE, {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}):
        assert torch.equal(
            get_loss("clip_cov")(batch, **clip_range).loss, get_loss("ppo_clip")(batch, **clip_range).loss
        )


def test_a_selected_token_keeps_its_place_in_the_denominator(make_batch):
    batch = make_batch(100)
    others = make_batch(100, kept_mask=batch.kept_mask & ~batch.selected)
    assert torch.equal(get_loss("clip_cov")(batch).loss, get_loss("clip_cov")(others).loss)


@pytest.mark.parametrize("ratio", [2e-4, 0.02, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_micro_batch_scope_equals_the_published_formula(ratio, dtype, make_batch):
    num_tokens, lower, upper = 500, 0.5, 2.0
    batch = make_batch(
        num_tokens,
        dtype=dtype,
        kept_mask=torch.ones(num_tokens, dtype=torch.bool),
        token_weights=torch.full((num_tokens,), 1 / num_tokens, dtype=dtype),
    )
    loss = get_loss("clip_cov")
    clipped = loss.clipped(batch, **RANGE)
    cov = covariance(batch.log_probs, batch.advantages, batch.kept_mask, group=None)
    selected = select_clip_cov(
        cov,
        batch.kept_mask & ~clipped,
        batch.kept_mask,
        torch.arange(num_tokens),
        ratio=ratio,
        lower=lower,
        upper=upper,
        seed=1,
        update=2,
        group=None,
    )
    published_cov = published_covariance(batch.log_probs, batch.advantages)
    eligible = (published_cov > lower) & (published_cov < upper) & ~clipped
    picked = selected.nonzero().flatten()
    assert len(picked) == min(max(int(ratio * num_tokens), 1), int(eligible.sum()))
    assert eligible[picked].all()

    given = make_batch(
        num_tokens,
        dtype=dtype,
        kept_mask=batch.kept_mask,
        token_weights=batch.token_weights,
        log_probs=batch.log_probs.clone().requires_grad_(),
        selected=selected,
    )
    reference = batch.log_probs.double().clone().requires_grad_()
    got = loss(given, **RANGE).loss
    expected = published_loss(reference, batch.old_log_probs.double(), batch.advantages.double(), picked)
    got.backward()
    expected.backward()
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(given.log_probs.grad.double(), reference.grad, rtol=0, atol=1e-6)

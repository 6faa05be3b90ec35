"""STEER's loss: PPO's with a weight for each token, by value and gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megacov.losses import get_loss
from megacov.selection import SelectionInputs, get_selector

HYPERPARAMETERS = [{"clip_low": 0.1, "clip_high": 0.4, "dual_clip": None}, {"dual_clip": 1.5}]
LAYOUT_HYPERPARAMETERS = {"clip_low": 1.0, "clip_high": 9.0}
LAYOUT_SELECTION = {"min_weight": 0.3, "min_scale": 0.02}

# advantage, ratio, weight, selected -> loss, gradient by the log-prob; range 0.8 to 1.25, dual clip 3
CASES = [
    (2.0, 1.1, 0.5, True, -1.1, -1.1),
    (2.0, 1.1, 0.5, False, -2.2, -2.2),
    (2.0, 1.5, 0.5, True, -1.25, 0.0),  # beyond the range
    (-2.0, 2.0, 0.8, True, 3.2, 3.2),
    (-2.0, 4.0, 0.8, True, 4.8, 0.0),  # beyond the dual clip
]


@pytest.mark.parametrize(("advantage", "ratio", "weight", "selected", "loss", "gradient"), CASES)
def test_hand_computed(advantage, ratio, weight, selected, loss, gradient, one_token):
    batch = replace(
        one_token(advantage, ratio, selected=selected), selection_weights=torch.tensor([weight], dtype=torch.float64)
    )
    output = get_loss("steer")(batch, clip_low=0.2, clip_high=0.25, dual_clip=3.0)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss)
    assert batch.log_probs.grad.item() == pytest.approx(gradient, abs=1e-12)
    assert output.metrics["steer_weight"].item() == pytest.approx(weight if selected else 1.0)


def test_without_a_token_that_is_held_back_it_is_ppo(make_batch):
    settings = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0}
    expected = get_loss("ppo_clip")(make_batch(80), **settings)
    nothing = torch.zeros(80, dtype=torch.bool)
    for batch in (make_batch(80, selection_weights=None), make_batch(80, selected=nothing)):
        assert torch.equal(get_loss("steer")(batch, **settings).loss, expected.loss)
    assert get_loss("steer")(make_batch(80), **settings).loss != expected.loss


def test_selection_and_loss_together_are_the_published_loss(make_batch):
    """On one micro-batch in float64, where no token is clipped: the authors' code, written from its formula."""
    batch = make_batch(120, log_probs=(start := make_batch(120)).old_log_probs + 0.05 * start.advantages.sin())
    kept = batch.kept_mask
    inputs = SelectionInputs(
        cov=batch.advantages,
        kept_mask=kept,
        token_ids=torch.arange(120),
        seed=0,
        update=0,
        group=None,
        log_probs=batch.log_probs,
        old_log_probs=batch.old_log_probs,
        policy_advantages=batch.advantages,
        current_entropy=batch.entropy,
    )
    mask, weights, _ = get_selector("steer").choose(inputs, min_weight=0.8, min_scale=0.02)
    log_probs = batch.log_probs.clone().requires_grad_()
    given = replace(batch, log_probs=log_probs, selected=mask, selection_weights=weights)
    loss = get_loss("steer")(given).loss
    (gradient,) = torch.autograd.grad(loss, log_probs)

    p, old, a, h = batch.log_probs.exp(), batch.old_log_probs.exp(), batch.advantages, batch.entropy
    omega = (a / old * p * (1 - p) * (p.log() + h)).abs()
    factor = torch.exp(torch.tensor(0.8, dtype=torch.float64).log() / omega[kept].max() * omega)
    expected = torch.where(kept, -batch.token_weights * factor * a * p / old, 0.0)
    assert factor[kept].min() == pytest.approx(0.8)
    # Here the loss of each token, -A ratio, is its own derivative by the log-prob.
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss, expected.sum(), rtol=1e-6, atol=1e-9)

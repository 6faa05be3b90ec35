"""BAPO's loss: with the tokens beyond a range selected, its gradient is that of PPO's clip with this range."""

from __future__ import annotations

import pytest
import torch

from megacov.losses import get_loss
from megacov.selection.bapo import beyond_range

# Bounds that three small updates reach; the range widens on its way.
LAYOUT_SELECTION = {
    "positive_share": 0.5,
    "lower_start": 0.9,
    "lower_end": 0.99,
    "upper_start": 1.005,
    "upper_end": 1.05,
    "step": 0.005,
}


def test_the_gradient_is_that_of_ppo_with_the_same_range(make_batch):
    batch = make_batch(200)
    lower, upper = torch.tensor(0.85).double(), torch.tensor(1.4).double()
    selected = beyond_range(batch.log_probs - batch.old_log_probs, batch.advantages, batch.kept_mask, lower, upper)
    assert 10 < int(selected.sum()) < 150
    found = {}
    for name, settings in {"bapo": {}, "ppo_clip": {"clip_low": 0.15, "clip_high": 0.4}}.items():
        log_probs = batch.log_probs.clone().requires_grad_()
        get_loss(name)(make_batch(200, log_probs=log_probs, selected=selected), **settings).loss.backward()
        found[name] = log_probs.grad
    torch.testing.assert_close(found["bapo"], found["ppo_clip"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("selected", [False, True])
def test_hand_computed(selected, one_token):
    batch = one_token(-2.0, 0.5, selected=selected)
    output = get_loss("bapo")(batch)
    assert output.loss.item() == pytest.approx(0.0 if selected else 1.0)
    assert output.metrics["bapo_clip_fraction"] == selected

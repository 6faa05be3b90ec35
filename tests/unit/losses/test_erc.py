"""ERC: which tokens learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megacov.errors import ConfigError
from megacov.losses import get_loss

HYPERPARAMETERS = [{"clip_low": 0.1, "clip_high": 0.5, "entropy_low": 0.95, "entropy_high": 1.05}]
LAYOUT_HYPERPARAMETERS = {"entropy_low": 0.999, "entropy_high": 1.001}

# advantage, ratio, entropy, old entropy -> gradient; the ranges are 0.8 to 1.25 and 0.5 to 1.5
CASES = [
    (2.0, 1.1, 1.0, 1.0, -2.2),
    (2.0, 1.1, 0.5, 1.0, -2.2),  # on the bound
    (2.0, 1.1, 0.49, 1.0, 0.0),
    (2.0, 1.1, 1.51, 1.0, 0.0),
    (-2.0, 0.9, 2.9, 2.0, 1.8),
    (-2.0, 0.9, 3.1, 2.0, 0.0),
    (2.0, 1.3, 1.0, 1.0, 0.0),  # PPO's range
    (2.0, 1.1, 0.0, 0.0, -2.2),
    (2.0, 1.1, 1e-6, 0.0, 0.0),
]


@pytest.mark.parametrize(("advantage", "ratio", "entropy", "old", "gradient"), CASES)
def test_hand_computed(advantage, ratio, entropy, old, gradient, one_token):
    known = {"entropy": torch.tensor([entropy]).double(), "old_entropy": torch.tensor([old]).double()}
    batch = replace(one_token(advantage, ratio), **known)
    settings = {"clip_low": 0.2, "clip_high": 0.25, "entropy_low": 0.5, "entropy_high": 1.5}
    output = get_loss("erc")(batch, **settings)
    output.loss.backward()
    assert batch.log_probs.grad.item() == pytest.approx(gradient, abs=1e-12)
    assert get_loss("erc").clipped(batch, **settings).item() == (gradient == 0)
    assert output.metrics["erc_clip_fraction"] == (not 0.5 * old <= entropy <= 1.5 * old)
    assert output.metrics["ppo_clip_fraction"] == (ratio > 1.25)


def test_wide_bounds_are_dapo(make_batch):
    batch = make_batch(50)
    found = get_loss("erc")(batch, entropy_low=0.0, entropy_high=1e9)
    expected = get_loss("ppo_clip")(batch, clip_low=0.2, clip_high=0.28)
    assert torch.equal(found.loss, expected.loss)
    assert get_loss("erc")(batch).loss != expected.loss


@pytest.mark.parametrize("wrong", [{"entropy_low": 1.1}, {"entropy_high": 0.9}, {"entropy_low": -0.1}])
def test_bounds_without_one_are_refused(wrong, make_batch):
    with pytest.raises(ConfigError, match="let 1 in"):
        get_loss("erc")(make_batch(4), **wrong)

"""EntroPIC's loss: values and gradients worked out by hand."""

from __future__ import annotations

from math import log

import pytest
import torch

from megacov.errors import ConfigError
from megacov.losses import get_loss

HYPERPARAMETERS = [
    {"alpha": 0.5, "threshold": 0.3},
    {"alpha": -0.7, "threshold": 0.5, "clip_low": 0.1, "clip_high": 0.3, "dual_clip": 3.0},
]
LAYOUT_HYPERPARAMETERS = {"alpha": 0.5, "threshold": 0.02, "clip_low": 0.02, "clip_high": 0.03}

# advantage, ratio, alpha, probability -> loss, gradient; the range is 0.8 to 1.25, likely is above 0.6
CASES = [
    (2.0, 1.1, 0.5, 0.7, -3.3, -3.3),  # weight 1 + alpha
    (-2.0, 1.1, 0.5, 0.7, 1.1, 1.1),  # weight 1 - alpha
    (2.0, 1.1, -0.5, 0.7, -1.1, -1.1),
    (2.0, 1.1, 0.5, 0.5, -2.2, -2.2),  # not likely: PPO
    (2.0, 1.5, 0.5, 0.7, -2.5 - 1.5, -1.5),  # beyond the range only the term has a gradient
    (2.0, 1.5, 0.0, 0.7, -2.5, 0.0),
]


@pytest.mark.parametrize(("advantage", "ratio", "alpha", "probability", "loss", "slope"), CASES)
def test_hand_computed(advantage, ratio, alpha, probability, loss, slope, make_batch):
    log_probs = torch.tensor([log(probability)], dtype=torch.float64, requires_grad=True)
    given = {"log_probs": log_probs, "old_log_probs": (log_probs - log(ratio)).detach()}
    given |= {"advantages": torch.tensor([advantage]), "kept_mask": torch.tensor([True])}
    batch = make_batch(1, **given, token_weights=torch.ones(1, dtype=torch.float64))
    output = get_loss("entropic")(batch, alpha=alpha, threshold=0.6, clip_low=0.2, clip_high=0.25)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss) and log_probs.grad.item() == pytest.approx(slope)
    assert output.metrics["entropic_likely_fraction"] == (probability > 0.6)


def test_at_alpha_0_it_is_ppo(make_batch):
    batch = make_batch(80)
    for name in ("loss", "clipped"):
        found = [
            get_loss(each)(batch, dual_clip=3.0).loss
            if name == "loss"
            else get_loss(each).clipped(batch, dual_clip=3.0)
            for each in ("entropic", "ppo_clip")
        ]
        assert torch.equal(*found)


@pytest.mark.parametrize("wrong", [{"alpha": 1.1}, {"alpha": -1.1}, {"threshold": 0.0}, {"threshold": 1.0}])
def test_settings_out_of_range_are_refused(wrong, make_batch):
    with pytest.raises(ConfigError, match=r"alpha is .* threshold is"):
        get_loss("entropic")(make_batch(4), **wrong)

"""PPO clip: values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from megacov.errors import ConfigError
from megacov.losses import get_loss

HYPERPARAMETERS = [{"clip_low": 0.2, "clip_high": 0.28}, {"dual_clip": 1.5}]
LAYOUT_HYPERPARAMETERS = {"clip_low": 0.02, "clip_high": 0.03}

# advantage, ratio, dual clip -> loss, gradient of the log-prob (-A rho where nothing clips), ppo-clipped, dual-clipped
CASES = [
    (2.0, 1.0, None, -2.0, -2.0, 0, 0),
    (2.0, 1.25, None, -2.5, -2.5, 0, 0),  # below 1 + clip_high
    (2.0, 1.5, None, -2.6, 0.0, 1, 0),  # -2 * 1.3
    (2.0, 0.5, None, -1.0, -1.0, 0, 0),  # below the range, but a gain to come back
    (-2.0, 1.0, None, 2.0, 2.0, 0, 0),
    (-2.0, 0.5, None, 1.6, 0.0, 1, 0),  # 2 * 0.8
    (-2.0, 1.5, None, 3.0, 3.0, 0, 0),
    (-2.0, 5.0, None, 10.0, 10.0, 0, 0),
    (-2.0, 5.0, 3.0, 6.0, 0.0, 0, 1),  # 2 * 3
    (-2.0, 2.5, 3.0, 5.0, 5.0, 0, 0),
    (-2.0, 0.5, 3.0, 1.6, 0.0, 1, 0),
    (2.0, 5.0, 3.0, -2.6, 0.0, 1, 0),  # the dual clip is for negative advantages only
    (0.0, 5.0, 3.0, 0.0, 0.0, 0, 0),
]


@pytest.mark.parametrize(("advantage", "ratio", "dual_clip", "loss", "gradient", "ppo_clipped", "dual_clipped"), CASES)
def test_hand_computed(advantage, ratio, dual_clip, loss, gradient, ppo_clipped, dual_clipped, one_token):
    batch = one_token(advantage, ratio)
    hyperparameters = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": dual_clip}
    output = get_loss("ppo_clip")(batch, **hyperparameters)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss, abs=1e-12)
    assert batch.log_probs.grad.item() == pytest.approx(gradient, abs=1e-12)
    assert output.metrics["ppo_clip_fraction"] == ppo_clipped
    assert output.metrics.get("dual_clip_fraction", 0) == dual_clipped
    assert get_loss("ppo_clip").clipped(batch, **hyperparameters).item() == bool(ppo_clipped or dual_clipped)


def test_weights_scale_each_token(make_batch):
    batch = make_batch(2, kept_mask=torch.tensor([True, True]))
    one_by_one = [
        get_loss("ppo_clip")(make_batch(2, kept_mask=torch.tensor(mask), token_weights=torch.ones(2).double())).loss
        for mask in ([True, False], [False, True])
    ]
    expected = (batch.token_weights * torch.stack(one_by_one)).sum()
    torch.testing.assert_close(get_loss("ppo_clip")(batch).loss, expected)


@pytest.mark.parametrize("wrong", [{"clip_low": 1.5}, {"clip_low": -0.1}, {"clip_high": -1.0}, {"dual_clip": 1.0}])
def test_impossible_ranges_are_refused(wrong, make_batch):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        get_loss("ppo_clip")(make_batch(4), **wrong)
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        get_loss("ppo_clip").clipped(make_batch(4), **wrong)

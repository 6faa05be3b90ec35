"""REPO-R: advantages worked out by hand, and PPO without it."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses import get_loss
from megacov.types import LossBatch

HYPERPARAMETERS = [
    {"zeta": 0.5, "clip_low": 0.1, "clip_high": 0.5},
    {"zeta": -0.5, "dual_clip": 3.0},
]
LAYOUT_HYPERPARAMETERS = {"zeta": 0.2, "clip_low": 0.02, "clip_high": 0.03}

# advantage, log-prob, zeta -> scaled advantage
CASES = [
    (2.0, -1.0, 0.25, 2.5),  # an unlikely right token counts more
    (2.0, 0.0, 0.25, 2.0),  # a certain one as before
    (-2.0, -1.0, 0.25, -1.5),  # an unlikely wrong token is spared
    (-2.0, -8.0, 0.25, 0.0),  # and never rewarded
    (2.0, -1.0, -0.25, 1.5),
    (2.0, -8.0, -0.25, 0.0),
    (-2.0, -1.0, -0.25, -2.5),
]


def gradient(
    batch: LossBatch, *, zeta: float, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """-A' rho, and 0 where PPO's clip cuts."""
    ratio = (batch.log_probs - batch.old_log_probs).exp()
    positive = (batch.advantages * (1 - zeta * batch.log_probs)).clamp(min=0)
    negative = (batch.advantages * (1 + zeta * batch.log_probs)).clamp(max=0)
    advantages = torch.where(batch.advantages > 0, positive, negative)
    beyond = torch.where(advantages > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
    if dual_clip is not None:
        beyond |= (advantages < 0) & (ratio > dual_clip)
    return torch.where(beyond, 0.0, -advantages * ratio)


@pytest.mark.parametrize(("advantage", "log_prob", "zeta", "scaled"), CASES)
def test_hand_computed(advantage, log_prob, zeta, scaled, make_batch):
    log_probs = torch.tensor([log_prob], dtype=torch.float64, requires_grad=True)
    given = {"log_probs": log_probs, "old_log_probs": (log_probs - log(1.1)).detach()}
    given |= {"advantages": torch.tensor([advantage]).double(), "kept_mask": torch.tensor([True])}
    batch = make_batch(1, **given, token_weights=torch.ones(1, dtype=torch.float64))
    output = get_loss("repo_r")(batch, zeta=zeta)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-1.1 * scaled, abs=1e-12)
    assert log_probs.grad.item() == pytest.approx(-1.1 * scaled, abs=1e-12)
    assert output.metrics["repo_r_scale"] == pytest.approx(scaled / advantage)


def test_at_zeta_0_it_is_ppo(make_batch):
    batch = make_batch(80)
    assert torch.equal(get_loss("repo_r")(batch, zeta=0.0).loss, get_loss("ppo_clip")(batch).loss)
    assert torch.equal(get_loss("repo_r").clipped(batch, zeta=0.0), get_loss("ppo_clip").clipped(batch))


@pytest.mark.parametrize("zeta", [-1.1, 1.1])
def test_settings_out_of_range_are_refused(zeta, make_batch):
    with pytest.raises(ConfigError, match=r"zeta is -?1.1: set it between"):
        get_loss("repo_r")(make_batch(4), zeta=zeta)

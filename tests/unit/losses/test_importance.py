"""Weights between the server that sampled and the trainer that learns."""

from __future__ import annotations

import pytest
import torch

from megacov.errors import ConfigError
from megacov.losses import importance_weights

LOG_RATIOS = torch.tensor([0.0, 0.5, -0.5, 3.0, -3.0, 800.0, -800.0])


def test_truncation_cuts_from_above_only() -> None:
    weights, is_kept = importance_weights(LOG_RATIOS, mode="truncate", lower=0.5, upper=2.0)
    expected = LOG_RATIOS.double().exp().clamp(max=2.0).float()
    assert torch.equal(weights, expected)
    assert is_kept.all()
    assert weights.dtype == torch.float32


def test_a_mask_keeps_what_is_within_both_bounds() -> None:
    weights, is_kept = importance_weights(LOG_RATIOS, mode="mask", lower=0.5, upper=2.0)
    assert is_kept.tolist() == [True, True, True, False, False, False, False]
    assert torch.equal(weights[:3], LOG_RATIOS[:3].double().exp().float())
    assert not weights[3:].any()


def test_bounds_belong_to_the_range() -> None:
    log_ratios = torch.tensor([0.5, 2.0], dtype=torch.float64).log()
    assert importance_weights(log_ratios, mode="mask", lower=0.5, upper=2.0)[1].all()


def test_no_gradient_passes() -> None:
    weights, _ = importance_weights(LOG_RATIOS.clone().requires_grad_(), mode="truncate", lower=0.0, upper=2.0)
    assert not weights.requires_grad


@pytest.mark.parametrize(
    ("mode", "lower", "upper"), [("clip", 0.5, 2.0), ("mask", 1.5, 2.0), ("truncate", 0.5, 0.9), ("mask", 2.0, 0.5)]
)
def test_what_cannot_be_meant_is_refused(mode: str, lower: float, upper: float) -> None:
    with pytest.raises(ConfigError, match="rollout_correction"):
        importance_weights(LOG_RATIOS, mode=mode, lower=lower, upper=upper)

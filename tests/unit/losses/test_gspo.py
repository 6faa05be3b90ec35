"""GSPO: values and gradients worked out by hand, and the sequence-level form of the paper."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses import get_loss
from megacov.types import LossBatch

HYPERPARAMETERS = [{"clip_low": 0.1, "clip_high": 0.2}]
# Some sequences beyond the range, some within.
LAYOUT_HYPERPARAMETERS = {"clip_low": 0.02, "clip_high": 0.03}

# advantage, ratio of the sequence -> loss, gradient, clipped; clip range [0.8, 1.3]
CASES = [
    (2.0, 1.0, -2.0, -2.0, False),
    (2.0, 1.25, -2.5, -2.5, False),
    (2.0, 1.5, -2.6, 0.0, True),
    (2.0, 0.5, -1.0, -1.0, False),
    (-2.0, 0.5, 1.6, 0.0, True),
    (-2.0, 1.5, 3.0, 3.0, False),
]


def gradient(batch: LossBatch, *, clip_low: float, clip_high: float) -> Tensor:
    """-A s_i, or 0 where the range cuts; s_i = exp(mean d of the sequence)."""
    ratio = (batch.sequence_log_ratio / batch.sequence_tokens).exp()
    is_cut = torch.where(batch.advantages > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
    return torch.where(is_cut, 0.0, -batch.advantages * ratio)


@pytest.mark.parametrize(("advantage", "ratio", "loss", "slope", "clipped"), CASES)
def test_hand_computed(advantage, ratio, loss, slope, clipped, one_token):
    # Three tokens whose ratios have that geometric mean; this one's own ratio is another, and does not matter.
    batch = replace(
        one_token(advantage, 1.7),
        sequence_log_ratio=torch.tensor([3 * log(ratio)]).double(),
        sequence_tokens=torch.tensor([3.0]).double(),
    )
    hyperparameters = {"clip_low": 0.2, "clip_high": 0.3}
    output = get_loss("gspo")(batch, **hyperparameters)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss)
    assert batch.log_probs.grad.item() == pytest.approx(slope)
    assert output.metrics["gspo_clip_fraction"] == clipped
    assert output.metrics["gspo_ratio"].item() == pytest.approx(ratio)
    assert get_loss("gspo").clipped(batch, **hyperparameters).item() == clipped


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_it_is_the_sequence_level_loss_of_the_paper(advantage):
    """min(s A, clip(s) A) of one sequence with s = (pi / pi_old)^(1 / length), differentiated through s."""
    for spread in (0.05, 0.5):
        old = torch.tensor([-1.0, -0.3, -2.0, -0.8]).double()
        log_probs = (old + spread * torch.tensor([0.9, -0.2, 0.4, -0.6]).double()).requires_grad_()
        ratio = (log_probs - old).mean().exp()
        (-torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)).backward()
        own = log_probs.detach().clone().requires_grad_()
        batch = LossBatch(
            log_probs=own,
            old_log_probs=old,
            advantages=torch.full((4,), advantage).double(),
            kept_mask=torch.ones(4, dtype=torch.bool),
            token_weights=torch.full((4,), 0.25).double(),  # sequence_mean_token_mean
            sequence_log_ratio=(own - old).detach().sum().expand(4),
            sequence_tokens=torch.full((4,), 4.0).double(),
        )
        loss = get_loss("gspo")(batch, clip_low=0.1, clip_high=0.1).loss
        loss.backward()
        assert loss.item() == pytest.approx(-min(ratio.item() * advantage, ratio.clamp(0.9, 1.1).item() * advantage))
        torch.testing.assert_close(own.grad, log_probs.grad)


def test_the_published_range(one_token):
    for ratio, clipped in ((exp(3.9e-4), False), (exp(4.1e-4), True)):
        assert get_loss("gspo")(one_token(1.0, ratio)).metrics["gspo_clip_fraction"] == clipped
    for ratio, clipped in ((exp(-2.9e-4), False), (exp(-3.1e-4), True)):
        assert get_loss("gspo")(one_token(-1.0, ratio)).metrics["gspo_clip_fraction"] == clipped


@pytest.mark.parametrize("wrong", [{"clip_low": 1.5}, {"clip_low": -0.1}, {"clip_high": -1.0}])
def test_impossible_ranges_are_refused(wrong, make_batch):
    with pytest.raises(ConfigError, match=r"clip_low is .* clip_high is"):
        get_loss("gspo")(make_batch(4), **wrong)

"""Aggregation modes against a loop over sequences; global denominators make micro-batches add up."""

from __future__ import annotations

import pytest
import torch

from megacov.errors import ConfigError
from megacov.losses import token_weights
from megacov.losses.aggregation import MODES

NORM = 4096.0
LENGTHS = (5, 1, 12, 3, 7)


def loop(token_losses, mode):
    """The aggregate of a list of per-sequence loss tensors, straight from the definition of each mode."""
    if mode == "token_mean":
        return torch.cat(token_losses).mean()
    if mode == "sequence_sum_constant_norm":
        return sum(losses.sum() for losses in token_losses) / NORM
    per_sequence = [losses.mean() if mode.endswith("token_mean") else losses.sum() for losses in token_losses]
    return sum(per_sequence) / len(per_sequence)


def sequences(seed: int = 0):
    """(losses, mask) per sequence: two masked tokens follow the loss tokens of each."""
    generator = torch.Generator().manual_seed(seed)
    for length in LENGTHS:
        mask = torch.cat([torch.ones(length), torch.zeros(2)]).bool()
        yield torch.randn(length + 2, generator=generator, dtype=torch.float64), mask


def weights_of(part, mode, constant_norm=NORM):
    """Token weights of a micro-batch made of those (losses, mask) pairs."""
    return token_weights(
        torch.cat([mask for _, mask in part]),
        torch.cat([torch.full((len(mask),), i) for i, (_, mask) in enumerate(part)]),
        mode=mode,
        num_tokens=sum(LENGTHS),
        num_sequences=len(LENGTHS),
        tokens_per_sequence=torch.tensor([int(mask.sum()) for _, mask in part]),
        constant_norm=constant_norm,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("splits", [[(0, 5)], [(0, 2), (2, 3), (3, 5)], [(i, i + 1) for i in range(5)]])
def test_equals_a_loop_over_sequences_however_they_are_split(mode, splits):
    whole = list(sequences())
    total = torch.zeros(())
    for first, last in splits:
        part = whole[first:last]
        weights = weights_of(part, mode)
        mask = torch.cat([mask for _, mask in part])
        assert weights.dtype == torch.float32
        assert torch.equal(weights > 0, mask)
        assert torch.equal(weights == 0, ~mask)
        total = total + (weights.double() * torch.cat([losses for losses, _ in part])).sum()
    expected = loop([losses[mask] for losses, mask in whole], mode)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_a_sequence_without_loss_tokens_has_weight_zero(mode):
    weights = token_weights(
        torch.tensor([False, False, True]),
        torch.tensor([0, 0, 1]),
        mode=mode,
        num_tokens=1,
        num_sequences=2,
        tokens_per_sequence=torch.tensor([0, 1]),
        constant_norm=NORM,
    )
    assert torch.equal(weights > 0, torch.tensor([False, False, True]))
    assert weights.isfinite().all()


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match=r"'mean' is unknown: set algorithm\.aggregation to one of token_mean"):
        weights_of(list(sequences()), "mean")


@pytest.mark.parametrize("norm", [None, 0.0, -5.0])
def test_a_constant_norm_must_be_given_and_positive(norm):
    with pytest.raises(ConfigError, match=r"algorithm\.aggregation_norm is"):
        weights_of(list(sequences()), "sequence_sum_constant_norm", norm)

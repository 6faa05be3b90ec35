"""Log-probs without improbable entries against float64, from logits and from hidden states."""

import math

import pytest
import torch

from megacov.ops import (
    linear_min_p_log_probs,
    row_blocks,
    vocab_parallel_log_probs_and_entropy,
    vocab_parallel_min_p_log_probs,
)
from tests.support import reference

VOCAB, HIDDEN = 40, 12
_RAMP = torch.linspace(0.3, 2.0, 70).view(10, 7)


def _inputs(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and targets that follow them, so that some are kept and some are not."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, VOCAB, generator=generator) * 2
    targets = (logits[..., : VOCAB // 2] + torch.randn(*shape, VOCAB // 2, generator=generator) * 2).argmax(-1)
    return logits, targets


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.6, _RAMP], ids=["1", "0.6", "by position"])
@pytest.mark.parametrize("vocab_size", [None, 31])
def test_equals_float64(dtype, temperature, vocab_size):
    logits, targets = _inputs(10, 7)
    logits = logits.to(dtype)
    before, arguments = logits.clone(), {"min_p": 0.1, "temperature": temperature, "vocab_size": vocab_size}
    found = vocab_parallel_min_p_log_probs(logits.requires_grad_(), targets, tp_group=None, **arguments)
    expected = reference.min_p_log_probs(logits.detach(), targets, **arguments)
    assert 5 < int(expected.isfinite().sum()) < 65
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not found.requires_grad
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("chunk_tokens", [1, 8, 1024])
@pytest.mark.parametrize("temperature", [0.6, _RAMP.flatten()], ids=["0.6", "by position"])
def test_from_hidden_states_equals_float64(chunk_tokens, temperature):
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(70, HIDDEN, generator=generator), torch.randn(VOCAB, HIDDEN, generator=generator)
    targets = (hidden @ weight.t())[:, :31].topk(6).indices[torch.arange(70), torch.arange(70) % 6]
    arguments = {"min_p": 0.02, "temperature": temperature, "vocab_size": 31}
    found = linear_min_p_log_probs(hidden, weight, targets, tp_group=None, chunk_tokens=chunk_tokens, **arguments)
    expected = reference.min_p_log_probs(hidden.double() @ weight.double().t(), targets, **arguments)
    assert 5 < int(expected.isfinite().sum()) < 65
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


def test_its_limits_are_the_plain_log_prob_and_the_most_probable_entry():
    logits, targets = _inputs(50)
    plain, _ = vocab_parallel_log_probs_and_entropy(logits, targets, tp_group=None)
    everything = vocab_parallel_min_p_log_probs(logits, targets, min_p=1e-30, tp_group=None)
    torch.testing.assert_close(everything, plain, rtol=2e-6, atol=2e-6)
    best = vocab_parallel_min_p_log_probs(logits, targets, min_p=1.0, tp_group=None)
    assert torch.equal(best, torch.where(targets == logits.argmax(-1), 0.0, -math.inf))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4)])
def test_any_leading_shape(shape):
    logits, targets = _inputs(*shape)
    found = vocab_parallel_min_p_log_probs(logits, targets, min_p=0.1, tp_group=None)
    torch.testing.assert_close(found.double(), reference.min_p_log_probs(logits, targets, min_p=0.1))
    if len(shape) == 1:
        hidden, weight = torch.zeros(*shape, HIDDEN), torch.zeros(VOCAB, HIDDEN)
        found = linear_min_p_log_probs(hidden, weight, targets, min_p=0.1, tp_group=None)
        torch.testing.assert_close(found, torch.full(shape, -math.log(VOCAB)))


def test_blocks_of_rows_do_not_change_a_bit(monkeypatch):
    logits, targets = _inputs(50)
    whole = vocab_parallel_min_p_log_probs(logits, targets, min_p=0.1, tp_group=None)
    monkeypatch.setattr(row_blocks, "CPU_BLOCK_BYTES", 7 * VOCAB * 4)
    assert torch.equal(whole, vocab_parallel_min_p_log_probs(logits, targets, min_p=0.1, tp_group=None))


def test_impossible_entries_add_nothing_and_broken_rows_stay_nan():
    logits, targets = _inputs(8)
    logits[:, 25:30] = -math.inf
    logits[2, 33], logits[3] = math.nan, -math.inf
    found = vocab_parallel_min_p_log_probs(logits, targets, min_p=0.1, tp_group=None)
    possible = torch.cat([logits[:, :25], logits[:, 30:]], 1)
    expected = reference.min_p_log_probs(possible, targets, min_p=0.1)
    assert found[2:4].isnan().all()
    for rows in (slice(2), slice(4, None)):
        torch.testing.assert_close(found[rows].double(), expected[rows], rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("min_p", [0.0, -0.1, 1.1, math.nan])
def test_a_share_out_of_range_is_refused(min_p):
    with pytest.raises(ValueError, match="must be a share"):
        vocab_parallel_min_p_log_probs(*_inputs(2), min_p=min_p, tp_group=None)

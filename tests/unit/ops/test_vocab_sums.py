"""Sums of squared probabilities against float64; the log-probs and entropies beside them are those of the other op."""

import math

import pytest
import torch

from megacov.ops import row_blocks, vocab_parallel_log_probs_and_entropy, vocab_parallel_sums
from tests.support import reference

_RAMP = torch.linspace(0.3, 2.0, 35).view(5, 7)


def _inputs(*shape: int, vocab: int = 40, scale: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, vocab, generator=generator) * scale
    return logits, torch.randint(0, vocab // 2, shape, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.6, _RAMP], ids=["1", "0.6", "by position"])
@pytest.mark.parametrize("vocab_size", [None, 31])
def test_equal_float64_and_leave_the_other_results_as_they_are(dtype, temperature, vocab_size):
    logits, targets = _inputs(5, 7)
    logits = logits.to(dtype)
    before, arguments = logits.clone(), {"tp_group": None, "temperature": temperature, "vocab_size": vocab_size}
    sums = vocab_parallel_sums(logits, targets, **arguments)
    expected = reference.square_sums(logits, temperature=temperature, vocab_size=vocab_size)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    assert sums.square_sum.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for found, value in zip(sums[2:], expected, strict=True):
        torch.testing.assert_close(found.double(), value, rtol=tolerance, atol=tolerance)
    for found, alone in zip(sums, vocab_parallel_log_probs_and_entropy(logits, targets, **arguments), strict=False):
        assert torch.equal(found, alone)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4)])
def test_any_leading_shape(shape):
    logits, targets = _inputs(*shape)
    sums = vocab_parallel_sums(logits.requires_grad_(), targets, tp_group=None)
    assert {value.shape for value in sums} == {targets.shape}
    assert not any(value.requires_grad for value in sums)
    for found, value in zip(sums[2:], reference.square_sums(logits.detach()), strict=True):
        torch.testing.assert_close(found.double(), value, rtol=3e-6, atol=2e-6)


def test_blocks_of_rows_do_not_change_a_bit(monkeypatch):
    logits, targets = _inputs(50)
    whole = vocab_parallel_sums(logits, targets, tp_group=None)
    monkeypatch.setattr(row_blocks, "CPU_BLOCK_BYTES", 7 * 40 * 4)
    assert all(map(torch.equal, whole, vocab_parallel_sums(logits, targets, tp_group=None)))


def test_impossible_entries_add_nothing():
    logits, targets = _inputs(8)
    logits[:, 25:30] = -math.inf
    sums = vocab_parallel_sums(logits, targets, tp_group=None)
    possible = torch.cat([logits[:, :25], logits[:, 30:]], 1)
    for found, value in zip(sums[2:], reference.square_sums(possible), strict=True):
        torch.testing.assert_close(found.double(), value, rtol=3e-6, atol=2e-6)


def test_huge_logits_do_not_overflow():
    logits = torch.tensor([[3e38, -3e38, 0.0], [5000.0, 4990.0, -5000.0], [-1e6, -1e6, -1e6]])
    sums = vocab_parallel_sums(logits, torch.tensor([0, 1, 2]), tp_group=None)
    for found, value in zip(sums[2:], reference.square_sums(logits), strict=True):
        torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-7)


def test_the_other_op_makes_no_room_for_them():
    """[t, 4] are exchanged unless the sums are asked for."""
    logits, targets = _inputs(6)
    sent = []

    class RecordStacks(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.unbind.int:
                sent.append(args[0].shape[-1])
            return result

    with RecordStacks():
        vocab_parallel_log_probs_and_entropy(logits, targets, tp_group=None)
        vocab_parallel_sums(logits, targets, tp_group=None)
    assert sent == [4, 6]


def test_a_target_outside_the_vocabulary_is_refused():
    logits, _ = _inputs(3)
    with pytest.raises(ValueError, match="target 40 is outside"):
        vocab_parallel_sums(logits, torch.tensor([0, 40, 1]), tp_group=None)


def test_rounding_errors_do_not_grow_with_the_vocabulary():
    logits, targets = _inputs(4, vocab=50_000, scale=2.0)
    sums = vocab_parallel_sums(logits, targets, tp_group=None)
    for found, value in zip(sums[2:], reference.square_sums(logits), strict=True):
        torch.testing.assert_close(found.double(), value, rtol=1e-6, atol=0.0)

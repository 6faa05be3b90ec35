"""Log-probs and entropy from hidden states: value and gradient against float64, and the memory that they take."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megacov.ops import linear_log_probs_and_entropy, linear_sums, row_blocks, vocab_parallel_log_probs_and_entropy
from tests.support import reference

VOCAB, HIDDEN = 40, 12
_RAMP = torch.linspace(0.3, 2.0, 35).view(5, 7)


def _inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(*shape, HIDDEN, generator=generator), torch.randn(VOCAB, HIDDEN, generator=generator)
    return hidden.to(dtype), weight.to(dtype), torch.randint(0, VOCAB // 2, shape, generator=generator)


def _backward(log_probs: Tensor, entropy: Tensor) -> None:
    """From a weighted sum of both results, or of the log-probs alone if entropy has no gradient."""
    weights = torch.linspace(-1.0, 2.0, log_probs.numel(), dtype=log_probs.dtype).view(log_probs.shape)
    loss = (log_probs * weights).sum()
    (loss + (entropy * weights.flip(0)).sum() if entropy.requires_grad else loss).backward()


def _expected(hidden: Tensor, weight: Tensor, targets: Tensor, *, entropy_grad: bool, **arguments) -> list[Tensor]:
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    log_probs, entropy = reference.log_probs_and_entropy(hidden @ weight.t(), targets, **arguments)
    _backward(log_probs, entropy if entropy_grad else entropy.detach())
    return [log_probs.detach(), entropy.detach(), hidden.grad, weight.grad]


@pytest.mark.parametrize("chunk_tokens", [1, 8, 1024])
@pytest.mark.parametrize("temperature", [1.0, 0.6, _RAMP], ids=["1", "0.6", "by position"])
@pytest.mark.parametrize(("vocab_size", "entropy_grad"), [(None, False), (31, True)])
def test_equals_float64_in_value_and_gradient(chunk_tokens, temperature, vocab_size, entropy_grad):
    hidden, weight, targets = _inputs(5, 7)
    before = hidden.clone(), weight.clone()
    arguments = {"temperature": temperature, "vocab_size": vocab_size}
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    log_probs, entropy = linear_log_probs_and_entropy(
        *leaves, targets, tp_group=None, entropy_grad=entropy_grad, chunk_tokens=chunk_tokens, **arguments
    )
    _backward(log_probs, entropy)
    assert entropy.requires_grad is entropy_grad
    found = [log_probs.detach(), entropy.detach(), hidden.grad, weight.grad]
    for value, expected in zip(found, _expected(*leaves, targets, entropy_grad=entropy_grad, **arguments), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=2e-5)
    assert all(map(torch.equal, leaves, before)), "an input was written to"


def test_gradcheck_in_float64():
    hidden, weight, targets = _inputs(3, dtype=torch.float64)

    def function(hidden, weight):
        return linear_log_probs_and_entropy(
            hidden, weight, targets, tp_group=None, temperature=0.7, entropy_grad=True, vocab_size=29, chunk_tokens=2
        )

    assert torch.autograd.gradcheck(function, (hidden.requires_grad_(), weight[:, :].requires_grad_()))


def test_bfloat16_equals_the_path_through_logits_to_rounding():
    hidden, weight, targets = _inputs(50, dtype=torch.bfloat16)
    found, through_logits = [], []
    for values, chunk_tokens in ((found, 16), (through_logits, None)):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        arguments = {"tp_group": None, "temperature": 0.8, "entropy_grad": True}
        if chunk_tokens is None:
            results = vocab_parallel_log_probs_and_entropy(leaves[0] @ leaves[1].t(), targets, **arguments)
        else:
            results = linear_log_probs_and_entropy(*leaves, targets, chunk_tokens=chunk_tokens, **arguments)
        _backward(*results)
        values.extend([*(result.detach() for result in results), *(leaf.grad for leaf in leaves)])
    for value, expected, dtype in zip(found, through_logits, [torch.float32] * 2 + [torch.bfloat16] * 2, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value, expected, rtol=1e-2, atol=0.02)
    exact = _expected(hidden, weight, targets, entropy_grad=True, temperature=0.8)[3]
    error, other = ((values[3].double() - exact).abs().mean() for values in (found, through_logits))
    assert error < 1.2 * other, "several chunks are added up as exactly as one product"


def test_many_chunks_add_up_in_float32():
    """In bfloat16 the sum of 512 ones would stop at 256."""
    hidden = torch.ones(512, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16).requires_grad_()
    targets = torch.zeros(512, dtype=torch.int64)
    log_probs, _ = linear_log_probs_and_entropy(hidden, weight, targets, tp_group=None, chunk_tokens=1)
    (2 * log_probs).sum().backward()
    assert weight.grad.flatten().tolist() == [512.0, -512.0]


@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_is_made_only_where_it_is_needed(which):
    hidden, weight, targets = _inputs(9)
    leaves = [hidden, weight]
    leaves[which].requires_grad_()
    linear_log_probs_and_entropy(*leaves, targets, tp_group=None, chunk_tokens=4)[0].sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == [which == 0, which == 1]


@pytest.mark.parametrize("shape", [(1,), (0,), (2, 0)])
def test_one_position_and_none(shape):
    hidden, weight, targets = _inputs(*shape)
    log_probs, entropy = linear_log_probs_and_entropy(
        hidden.requires_grad_(), weight.requires_grad_(), targets, tp_group=None, entropy_grad=True
    )
    assert log_probs.shape == entropy.shape == shape
    (log_probs + entropy).sum().backward()
    if 0 in shape:
        assert torch.equal(weight.grad, torch.zeros_like(weight))
    else:
        expected = reference.log_probs_and_entropy(hidden.detach() @ weight.detach().t(), targets)
        torch.testing.assert_close((log_probs.double(), entropy.double()), expected, rtol=1e-5, atol=2e-6)


def test_a_far_target_and_a_sure_one_are_finite():
    hidden, weight = torch.tensor([[300.0], [-300.0]]), torch.tensor([[300.0], [0.0], [-300.0]])
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    log_probs, entropy = linear_log_probs_and_entropy(
        *leaves, torch.tensor([2, 2]), tp_group=None, entropy_grad=True, chunk_tokens=1
    )
    _backward(log_probs, entropy)
    assert log_probs.tolist() == [-180000.0, 0.0]
    assert entropy.tolist() == [0.0, 0.0]
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("temperature", [1.0, 0.7, _RAMP.view(-1)], ids=["1", "0.7", "by position"])
def test_sums_come_from_one_computation(temperature):
    hidden, weight, targets = _inputs(35)
    arguments = {"tp_group": None, "temperature": temperature, "vocab_size": 31, "chunk_tokens": 8}
    found = linear_sums(hidden, weight, targets, with_entropy_t1=True, with_squares=True, **arguments)
    alone = linear_log_probs_and_entropy(hidden, weight, targets, **arguments)
    assert torch.equal(found.log_probs, alone[0]) and torch.equal(found.entropy, alone[1])
    logits = hidden.double() @ weight.double().t()
    expected = [
        reference.log_probs_and_entropy(logits, targets, vocab_size=31)[1],
        *reference.square_sums(logits, temperature=temperature, vocab_size=31),
    ]
    for value, exact in zip(found[2:], expected, strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=2e-6)
    assert linear_sums(hidden, weight, targets, **arguments)[2:] == (None, None, None)


class _LargestTensor(TorchDispatchMode):
    """Bytes behind the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_the_logits_of_a_chunk(monkeypatch, dtype):
    monkeypatch.setattr(row_blocks, "CPU_BLOCK_BYTES", 4000)
    num_tokens, vocab, chunk_tokens = 1000, 400, 50
    hidden, weight = torch.randn(num_tokens, 8).to(dtype), torch.randn(vocab, 8).to(dtype)
    targets = torch.zeros(num_tokens, dtype=torch.int64)
    with _LargestTensor() as largest:
        results = linear_log_probs_and_entropy(
            hidden.requires_grad_(),
            weight.requires_grad_(),
            targets,
            tp_group=None,
            entropy_grad=True,
            chunk_tokens=chunk_tokens,
        )
        sum(result.sum() for result in results).backward()
    assert largest.bytes == chunk_tokens * vocab * dtype.itemsize


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": torch.zeros(3, HIDDEN + 1)}, r"hidden states are torch.float32 \(3, 13\) and the weight is"),
        ({"hidden": torch.zeros(3, HIDDEN, dtype=torch.float64)}, "of one dtype"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, r"targets are torch.int64 \(4,\)"),
        ({"targets": torch.full((3,), VOCAB)}, "target 40 is outside the vocabulary of 40"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"vocab_size": VOCAB + 1}, "vocab_size is 41"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    hidden, weight, targets = _inputs(3)
    with pytest.raises(ValueError, match=message):
        linear_log_probs_and_entropy(
            **{"hidden": hidden, "weight": weight, "targets": targets, "tp_group": None, **arguments}
        )

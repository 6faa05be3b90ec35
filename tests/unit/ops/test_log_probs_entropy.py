"""Log-probs and entropy of an unsharded vocabulary: values and gradients against float64, and all edge cases."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megacov.ops import row_blocks, vocab_parallel_log_probs_and_entropy
from tests.support import reference


def _inputs(*shape: int, vocab: int = 40, seed: int = 0, scale: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, vocab, generator=generator) * scale
    return logits, torch.randint(0, vocab // 2, shape, generator=generator)


def _gradients(logits, targets, *, function, **arguments):
    """Values, and the gradient of a weighted sum of both results, or of the log-probs alone if entropy has none."""
    logits = logits.detach().requires_grad_()
    log_probs, entropy = function(logits, targets, **arguments)
    weights = torch.linspace(-1.0, 2.0, targets.numel(), dtype=log_probs.dtype).view(targets.shape)
    loss = (log_probs * weights).sum()
    if entropy.requires_grad:
        loss = loss + (entropy * weights.flip(0)).sum()
    loss.backward()
    return log_probs.detach(), entropy.detach(), logits.grad


_RAMP = torch.linspace(0.3, 2.0, 35).view(5, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 0.6, _RAMP], ids=["1", "0.6", "by position"])
@pytest.mark.parametrize("vocab_size", [None, 31])
@pytest.mark.parametrize("entropy_grad", [False, True])
def test_equals_float64_in_value_and_gradient(dtype, temperature, vocab_size, entropy_grad):
    logits, targets = _inputs(5, 7)
    logits = logits.to(dtype)
    before = logits.clone()
    log_probs, entropy, grad = _gradients(
        logits,
        targets,
        function=vocab_parallel_log_probs_and_entropy,
        tp_group=None,
        temperature=temperature,
        vocab_size=vocab_size,
        entropy_grad=entropy_grad,
    )

    def unsharded(logits, targets):
        log_probs, entropy = reference.log_probs_and_entropy(
            logits, targets, temperature=temperature, vocab_size=vocab_size
        )
        return log_probs, entropy if entropy_grad else entropy.detach()

    expected_log_probs, expected_entropy, expected_grad = _gradients(logits.double(), targets, function=unsharded)
    assert (log_probs.dtype, entropy.dtype, grad.dtype) == (torch.float32, torch.float32, dtype)
    torch.testing.assert_close(log_probs.double(), expected_log_probs, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-6, atol=2e-6)
    # The gradient is computed in float32 and rounded once to the logits' dtype.
    torch.testing.assert_close(grad.double(), expected_grad, rtol=max(torch.finfo(dtype).eps, 1e-5), atol=1e-6)
    assert torch.equal(logits.view(torch.uint8), before.view(torch.uint8)), "the logits were written to"


@pytest.mark.parametrize("entropy_grad", [False, True])
def test_gradcheck_in_float64(entropy_grad):
    logits, targets = _inputs(3, 4, vocab=11, scale=1.0)

    def function(logits):
        log_probs, entropy = vocab_parallel_log_probs_and_entropy(
            logits, targets, tp_group=None, temperature=0.7, entropy_grad=entropy_grad, vocab_size=9
        )
        return (log_probs, entropy) if entropy_grad else log_probs

    assert torch.autograd.gradcheck(function, (logits.double().requires_grad_(),))


def test_each_result_alone_can_carry_the_gradient():
    logits, targets = _inputs(6)
    for index in (0, 1):
        leaf, leaf_64 = logits.clone().requires_grad_(), logits.double().requires_grad_()
        results = vocab_parallel_log_probs_and_entropy(leaf, targets, tp_group=None, entropy_grad=True)
        results[index].sum().backward()
        reference.log_probs_and_entropy(leaf_64, targets)[index].sum().backward()
        torch.testing.assert_close(leaf.grad.double(), leaf_64.grad, rtol=1e-5, atol=1e-6)


def test_the_entropy_carries_no_gradient_unless_asked():
    logits, targets = _inputs(3)
    for asked in (False, True):
        log_probs, entropy = vocab_parallel_log_probs_and_entropy(
            logits.requires_grad_(), targets, tp_group=None, entropy_grad=asked
        )
        assert log_probs.requires_grad
        assert entropy.requires_grad is asked


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_temperatures_of_all_positions_give_the_bits_of_one_number(dtype, temperature):
    logits, targets = _inputs(50)
    arguments = {"function": vocab_parallel_log_probs_and_entropy, "tp_group": None, "entropy_grad": True}
    one = _gradients(logits.to(dtype), targets, **arguments, temperature=temperature)
    each = torch.full((50,), temperature, dtype=torch.float64)
    for expected, found in zip(one, _gradients(logits.to(dtype), targets, **arguments, temperature=each), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("temperature", [_RAMP[0, :6], torch.ones(7, dtype=torch.int64), _RAMP[0] - 1.0, _RAMP[0] / 0])
def test_temperatures_that_do_not_fit_are_refused(temperature):
    logits, targets = _inputs(7)
    with pytest.raises(ValueError, match="temperature"):
        vocab_parallel_log_probs_and_entropy(logits, targets, tp_group=None, temperature=temperature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_rows_do_not_change_a_bit(monkeypatch, dtype):
    logits, targets = _inputs(50)
    arguments = {
        "function": vocab_parallel_log_probs_and_entropy,
        "tp_group": None,
        "entropy_grad": True,
        "temperature": torch.linspace(0.3, 2.0, 50),
    }
    one_block = _gradients(logits.to(dtype), targets, **arguments)
    monkeypatch.setattr(row_blocks, "CPU_BLOCK_BYTES", 7 * 40 * 4)
    for one, many in zip(one_block, _gradients(logits.to(dtype), targets, **arguments), strict=True):
        assert torch.equal(one, many)


def test_a_transposed_view_is_read_in_place():
    logits, targets = _inputs(5, 7)
    transposed = logits.transpose(0, 1).contiguous().transpose(0, 1)
    assert not transposed.is_contiguous()
    arguments = {"function": vocab_parallel_log_probs_and_entropy, "tp_group": None}
    for plain, strided in zip(
        _gradients(logits, targets, **arguments), _gradients(transposed, targets, **arguments), strict=True
    ):
        assert torch.equal(plain, strided)


def test_no_memory_of_the_size_of_the_logits_beside_their_gradient(monkeypatch):
    logits, targets = _inputs(400, vocab=256)
    monkeypatch.setattr(row_blocks, "CPU_BLOCK_BYTES", 4 * 256 * 4)
    large_storages = set()

    class RecordLargeResults(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= logits.nbytes // 20:
                    large_storages.add(tensor.untyped_storage().data_ptr())
            return result

    leaf = logits.bfloat16().requires_grad_()
    with RecordLargeResults():
        log_probs, entropy = vocab_parallel_log_probs_and_entropy(
            leaf, targets, tp_group=None, entropy_grad=True, vocab_size=200
        )
        assert large_storages <= {leaf.untyped_storage().data_ptr()}
        (log_probs + entropy).sum().backward()
    assert len(large_storages - {leaf.untyped_storage().data_ptr()}) == 1


def test_impossible_entries_have_no_probability_and_no_gradient():
    logits, targets = _inputs(8)
    logits[:, 25:30] = -math.inf
    log_probs, entropy, grad = _gradients(
        logits, targets, function=vocab_parallel_log_probs_and_entropy, tp_group=None, entropy_grad=True
    )
    possible = torch.cat([logits[:, :25], logits[:, 30:]], 1)
    expected = _gradients(possible.double(), targets, function=reference.log_probs_and_entropy)
    torch.testing.assert_close(log_probs.double(), expected[0], rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(torch.cat([grad[:, :25], grad[:, 30:]], 1).double(), expected[2], rtol=1e-5, atol=1e-6)
    assert grad[:, 25:30].abs().max() == 0


def test_an_impossible_target_has_log_prob_minus_infinity():
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    log_probs, entropy = vocab_parallel_log_probs_and_entropy(logits, torch.tensor([1]), tp_group=None)
    assert log_probs.item() == -math.inf
    assert entropy.item() == pytest.approx(math.log(2))


def test_huge_logits_neither_overflow_nor_lose_the_small_probability():
    logits = torch.tensor([[3e38, -3e38, 0.0], [5000.0, 4990.0, -5000.0], [-1e6, -1e6, -1e6]])
    log_probs, entropy = vocab_parallel_log_probs_and_entropy(logits, torch.tensor([0, 1, 2]), tp_group=None)
    expected = reference.log_probs_and_entropy(logits, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(log_probs.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=1e-5, atol=1e-7)


def test_a_likely_target_keeps_its_small_gradient_in_bf16():
    logits = torch.zeros(1, 16, dtype=torch.bfloat16)
    logits[0, 3] = 12.0
    logits.requires_grad_()
    vocab_parallel_log_probs_and_entropy(logits, torch.tensor([3]), tp_group=None)[0].sum().backward()
    improbable = 1 - torch.softmax(logits.detach().double(), 1)[0, 3].item()
    assert 0 < improbable < torch.finfo(torch.bfloat16).eps / 50
    assert logits.grad[0, 3].item() == pytest.approx(improbable, rel=0.01)


def test_nan_and_plus_infinity_come_through_as_nan():
    logits = torch.tensor([[0.0, math.nan], [0.0, math.inf], [0.0, 0.0]])
    log_probs, entropy = vocab_parallel_log_probs_and_entropy(logits, torch.zeros(3, dtype=torch.int64), tp_group=None)
    assert log_probs.isnan().tolist() == entropy.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4)])
def test_any_leading_shape(shape):
    logits, targets = _inputs(*shape)
    log_probs, entropy, grad = _gradients(
        logits, targets, function=vocab_parallel_log_probs_and_entropy, tp_group=None, entropy_grad=True
    )
    expected = reference.log_probs_and_entropy(logits, targets)
    assert log_probs.shape == entropy.shape == shape
    assert grad.shape == logits.shape
    torch.testing.assert_close(log_probs.double(), expected[0], rtol=1e-6, atol=2e-6)


def test_two_calls_give_the_same_bits():
    logits, targets = _inputs(20)
    arguments = {"function": vocab_parallel_log_probs_and_entropy, "tp_group": None, "entropy_grad": True}
    for one, other in zip(
        _gradients(logits, targets, **arguments), _gradients(logits, targets, **arguments), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("target", "vocab_size"), [(-1, None), (40, None), (31, 31), (-100, 31)])
def test_a_target_outside_the_vocabulary_is_refused(target, vocab_size):
    logits, targets = _inputs(3)
    targets[1] = target
    with pytest.raises(ValueError, match=f"target {target} is outside"):
        vocab_parallel_log_probs_and_entropy(logits, targets, tp_group=None, vocab_size=vocab_size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 4, dtype=torch.int64)}, "logits"),
        ({"logits": torch.zeros(3, 0)}, "logits"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, "targets"),
        ({"targets": torch.zeros(3)}, "targets"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"vocab_size": 5}, "vocab_size"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    arguments = {"logits": torch.zeros(3, 4), "targets": torch.zeros(3, dtype=torch.int64), **change}
    logits, targets = arguments.pop("logits"), arguments.pop("targets")
    with pytest.raises(ValueError, match=message):
        vocab_parallel_log_probs_and_entropy(logits, targets, tp_group=None, **arguments)


def test_nothing_is_read_back_from_a_device():
    """Meta tensors have no values, so code that reads one on the host, and would wait for a GPU, raises."""
    logits = torch.empty(6, 40, device="meta", requires_grad=True)
    targets = torch.empty(6, dtype=torch.int64, device="meta")
    log_probs, entropy = vocab_parallel_log_probs_and_entropy(
        logits, targets, tp_group=None, entropy_grad=True, vocab_size=30
    )
    (log_probs + entropy).sum().backward()
    assert logits.grad.shape == logits.shape

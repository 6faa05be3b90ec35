"""Checks of both passes over a shard in kernels: those of Triton and the loops for a CPU.

They run on a GPU, in Triton's interpreter with TRITON_INTERPRET=1, or on a CPU with MEGACOV_KERNELS=1. As a program it
prints, for each check, the assertion that failed, or an empty text.
"""

from __future__ import annotations

import math
import os
import sys
from itertools import product
from unittest import mock

import torch
from torch import Tensor

from megacov.ops import (
    VocabRange,
    linear_log_probs_and_entropy,
    vocab_parallel_log_probs_and_entropy,
    vocab_parallel_sums,
)
from megacov.ops.kernels import dispatch
from megacov.ops.vocab_gradient import gradient_coefficients, write_gradient
from megacov.ops.vocab_statistics import combine, shard_statistics
from tests.support import reference
from tests.support.kernel_program import print_failures

BLOCK = 4096
# Rows, columns of a shard, shards, entries without padding: blocks that are full, cut or one entry long, one-row and
# one-column inputs, a shard with one real entry, and shards with none.
SHAPES = [
    (1, 1, 1, None),
    (1, 40, 1, None),
    (7, 40, 1, 31),
    (2, BLOCK, 1, None),
    (2, BLOCK + 1, 1, None),
    (2, 2 * BLOCK + 1000, 1, 2 * BLOCK + 1),
    (1, 5000, 2, 5001),
    (5, 33, 4, 100),
    (5, 33, 4, 40),
]


def to_torch() -> mock._patch_dict:
    """Within it the torch path runs."""
    return mock.patch.dict(os.environ, {dispatch.VARIABLE: "0"})


def draw(rows: int, columns: int, shards: int, vocab_size: int | None, dtype: torch.dtype, device: str):
    """Logits [rows, columns x shards] and targets anywhere in the vocabulary."""
    generator = torch.Generator().manual_seed(rows + columns)
    logits = (torch.randn(rows, columns * shards, generator=generator) * 4).to(device, dtype)
    return logits, torch.randint(0, vocab_size or columns * shards, (rows,), generator=generator).to(device)


def computed(shards, targets, vocab_size, inverse, weights, entropy_weights):
    """Statistics of whole rows, and the gradient of a weighted sum, with every shard computed here by the kernels."""
    columns = shards[0].shape[1]
    size = columns * len(shards) if vocab_size is None else vocab_size
    ranges = [
        VocabRange(start, min(max(size - start, 0), columns), size)
        for start in range(0, columns * len(shards), columns)
    ]
    assert all(dispatch.row_kernels(shard) for shard in shards)
    packed = []
    for shard, vocab in zip(shards, ranges, strict=True):
        before = shard.clone()
        four, six = (shard_statistics(shard, targets, vocab, inverse, with_squares=both) for both in (False, True))
        assert torch.equal(shard.view(torch.uint8), before.view(torch.uint8)), "the logits were written to"
        assert torch.equal(four.view(torch.uint8), six[:, :4].contiguous().view(torch.uint8))
        with to_torch():
            plain = shard_statistics(shard, targets, vocab, inverse, with_squares=True)
        assert torch.equal(six[:, [0, 3]], plain[:, [0, 3]]), "largest and target's logit"
        torch.testing.assert_close(six, plain, rtol=1e-5, atol=1e-5)
        packed.append(six)
    found = combine(torch.stack(packed), targets, ranges[0], inverse)
    coefficients = gradient_coefficients(found.maximum, found.sum_exp, found.entropy, weights, entropy_weights, inverse)
    gradients = []
    for shard, vocab in zip(shards, ranges, strict=True):
        gradient, in_place = torch.full_like(shard, math.nan), shard.clone()
        write_gradient(gradient, shard, targets, coefficients, vocab, inverse)
        write_gradient(in_place, in_place, targets, coefficients, vocab, inverse)
        assert torch.equal(gradient.view(torch.uint8), in_place.view(torch.uint8)), "in place it is another gradient"
        assert not gradient[:, vocab.num_valid :].any(), "padding has a gradient"
        gradients.append(gradient)
    return found, torch.cat(gradients, 1)


def check_values_and_gradients_against_float64(device: str, shape: int) -> None:
    rows, columns, count, vocab_size = SHAPES[shape]
    ramp = torch.linspace(0.3, 2.0, rows, dtype=torch.float64, device=device)
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    in_loops = device == "cpu" and not is_interpreted
    for index, dtype in enumerate((torch.float32, torch.bfloat16) + (() if in_loops else (torch.float16,))):
        logits, targets = draw(rows, columns, count, vocab_size, dtype, device)
        weights = torch.linspace(-1.0, 2.0, rows, device=device)
        # Every temperature meets every dtype over the shapes, with and without a gradient through the entropy.
        temperature = (1.0, 0.6, ramp)[(index + shape) % 3]
        inverse = temperature.reciprocal().float() if isinstance(temperature, Tensor) else 1.0 / temperature
        for entropy_weights in (None, weights.flip(0)):
            shards = logits.split(columns, 1)
            found, gradient = computed(shards, targets, vocab_size, inverse, weights, entropy_weights)
            leaf = logits.double().requires_grad_()
            log_probs, entropy = reference.log_probs_and_entropy(
                leaf, targets, temperature=temperature, vocab_size=vocab_size
            )
            loss = (log_probs * weights).sum()
            if entropy_weights is not None:
                loss = loss + (entropy * entropy_weights).sum()
            loss.backward()
            squares = reference.square_sums(logits, temperature=temperature, vocab_size=vocab_size)
            results = (found.log_probs, found.entropy, found.square_sum, found.square_log_sum)
            for result, expected in zip(results, (log_probs, entropy, *squares), strict=True):
                torch.testing.assert_close(result.double(), expected.detach(), rtol=2e-6, atol=4e-6)
            assert gradient.dtype == dtype
            # A GPU and the loops round to the nearest bfloat16, Triton's interpreter towards zero.
            roundings = 2 if dtype == torch.bfloat16 and is_interpreted else 1
            tolerance = max(torch.finfo(dtype).eps / 2 * roundings, 1e-5) * 1.01
            torch.testing.assert_close(gradient.double(), leaf.grad, rtol=tolerance, atol=1e-6)


def check_logits_of_minus_infinity(device: str) -> None:
    """Also where the first block holds nothing else, and where a whole row does."""
    logits, targets = draw(5, BLOCK + 50, 1, None, torch.float32, device)
    logits[0, :BLOCK] = -math.inf
    logits[1, BLOCK:] = -math.inf
    logits[2, 7:] = -math.inf
    logits[3] = -math.inf
    targets.copy_(torch.tensor([BLOCK + 1, 5, 9, 4, 0]))
    vocab = VocabRange(0, BLOCK + 50, BLOCK + 50)
    weights = torch.ones(5, device=device)
    found, gradient = computed([logits], targets, None, 1.0, weights, weights)
    with to_torch():
        plain, plain_gradient = vocab_parallel_log_probs_and_entropy(logits, targets, tp_group=None), logits.clone()
        coefficients = gradient_coefficients(found.maximum, found.sum_exp, found.entropy, weights, weights, 1.0)
        write_gradient(plain_gradient, logits, targets, coefficients, vocab, 1.0)
    for ours, theirs in zip((found.log_probs, found.entropy, gradient), (*plain, plain_gradient), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
    good = [0, 1, 4]
    expected = reference.log_probs_and_entropy(logits[good], targets[good])
    torch.testing.assert_close(found.log_probs[good].double(), expected[0], rtol=1e-6, atol=4e-6)
    torch.testing.assert_close(found.entropy[good].double(), expected[1], rtol=1e-6, atol=4e-6)
    assert found.log_probs[2] == -math.inf and found.entropy[2].isfinite()
    assert found.entropy[3].isnan()


def check_what_is_not_finite_spoils_its_row_alone(device: str) -> None:
    for value in (math.nan, math.inf):
        for column, dtype in product((0, BLOCK - 1, BLOCK, BLOCK + 49), (torch.float32, torch.bfloat16)):
            logits, targets = draw(3, BLOCK + 50, 1, None, dtype, device)
            logits[1, column] = value
            leaf = logits.requires_grad_()
            log_probs, entropy = vocab_parallel_log_probs_and_entropy(leaf, targets, tp_group=None, entropy_grad=True)
            (log_probs + entropy).sum().backward()
            for result in (log_probs, entropy, leaf.grad.sum(1)):
                assert result.isfinite().tolist() == [True, False, True], (value, column)
            assert log_probs[1].isnan() and entropy[1].isnan()


def check_a_maximum_that_grows_or_falls_from_block_to_block(device: str) -> None:
    steps = torch.arange(5, device=device).repeat_interleave(BLOCK)
    noise, targets = draw(2, 5 * BLOCK, 1, None, torch.float32, device)
    for size in (0.5, 30.0, 2e4, 1e37):
        logits = noise + torch.stack([steps, -steps]) * size
        targets.copy_(torch.tensor([5 * BLOCK - 3, 2]))
        expected = reference.log_probs_and_entropy(logits, targets)
        found = vocab_parallel_log_probs_and_entropy(logits, targets, tp_group=None)
        for ours, theirs in zip(found, expected, strict=True):
            # float32 holds logits of 1e5 to 0.01 only, but both read the same ones.
            torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=1e-5)
    ends = torch.tensor([[3.4e38, -3.4e38, 0.0], [-3.4e38, -3.4e38, -3.4e38]], device=device)
    log_probs, entropy = vocab_parallel_log_probs_and_entropy(ends, targets * 0, tp_group=None)
    torch.testing.assert_close(log_probs, torch.tensor([0.0, -math.log(3)], device=device))
    torch.testing.assert_close(entropy, torch.tensor([0.0, math.log(3)], device=device))


def check_rows_do_not_depend_on_each_other(device: str) -> None:
    logits, targets = draw(6, BLOCK + 50, 1, None, torch.bfloat16, device)
    whole = vocab_parallel_log_probs_and_entropy(logits, targets, tp_group=None)
    for rows in (slice(0, 1), slice(2, 6)):
        part = vocab_parallel_log_probs_and_entropy(logits[rows], targets[rows], tp_group=None)
        assert all(torch.equal(ours[rows], theirs) for ours, theirs in zip(whole, part, strict=True))
    sums = vocab_parallel_sums(logits, targets, tp_group=None)
    assert torch.equal(sums.log_probs, whole[0]) and torch.equal(sums.entropy, whole[1])


def check_rows_that_lie_apart(device: str) -> None:
    """Nothing is read or written between them."""
    wide, targets = draw(4, 60, 1, None, torch.float32, device)
    targets %= 40
    logits, outside = wide[:, 10:50], torch.full_like(wide, 7.0)
    found = vocab_parallel_log_probs_and_entropy(logits, targets, tp_group=None)
    expected = vocab_parallel_log_probs_and_entropy(logits.contiguous(), targets, tp_group=None)
    assert dispatch.row_kernels(logits) and all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    vocab, ones = VocabRange(0, 30, 30), torch.ones(4, device=device)
    coefficients = gradient_coefficients(logits.amax(1), 3 * ones, ones, ones, None, 1.0)
    write_gradient(outside[:, 10:50], logits, targets, coefficients, vocab, 1.0)
    assert (outside[:, :10] == 7).all() and (outside[:, 50:] == 7).all()
    tight = torch.empty(4, 40, device=device)
    with to_torch():
        write_gradient(tight, logits.contiguous(), targets, coefficients, vocab, 1.0)
    torch.testing.assert_close(outside[:, 10:50], tight, rtol=1e-5, atol=1e-6)


def check_a_gradient_over_the_logits(device: str) -> None:
    """The same bits as in memory of its own, and autograd knows that the logits are gone."""
    drawn, targets = draw(3, BLOCK + 50, 1, None, torch.float32, device)
    leaf, found = drawn.requires_grad_(), []
    for overwrites in (False, True):
        given = leaf * 1.0
        log_probs, _ = vocab_parallel_log_probs_and_entropy(given, targets, tp_group=None, overwrites_logits=overwrites)
        (gradient,) = torch.autograd.grad(log_probs.sum(), given, retain_graph=True)
        assert (gradient.data_ptr() == given.data_ptr()) == overwrites
        found.append(gradient.clone())
    assert torch.equal(*found)
    refusal = ""
    try:
        log_probs.sum().backward()
    except RuntimeError as error:
        refusal = str(error)
    assert "modified by an inplace operation" in refusal, "a second backward took the gradient for the logits"


def check_the_public_functions_call_the_kernels(device: str) -> None:
    logits, targets = draw(6, 50, 1, None, torch.bfloat16, device)
    logits, targets = logits.view(2, 3, 50), targets.view(2, 3) % 45
    hidden, weight = torch.randn(2, 3, 8, device=device), torch.randn(50, 8, device=device)
    arguments = {"tp_group": None, "temperature": 0.8, "entropy_grad": True, "vocab_size": 45}

    def all_gradients():
        leaves = [tensor.detach().requires_grad_() for tensor in (logits, hidden, weight)]
        for results in (
            vocab_parallel_log_probs_and_entropy(leaves[0], targets, **arguments),
            linear_log_probs_and_entropy(leaves[1], leaves[2], targets, chunk_tokens=4, **arguments),
        ):
            sum(result.sum() for result in results).backward()
        return [leaf.grad for leaf in leaves]

    kernels = dispatch.row_kernels(logits.flatten(0, 1))
    forward, backward = (sys.modules[function.__module__] for function in kernels)
    with (
        mock.patch.object(forward, "reduce_rows", wraps=kernels.reduce_rows) as reads,
        mock.patch.object(backward, "write_rows", wraps=kernels.write_rows) as writes,
    ):
        found = all_gradients()
        # One call for all logits, and one for each of two chunks.
        assert (reads.call_count, writes.call_count) == (3, 3)
        with to_torch():
            expected = all_gradients()
        assert (reads.call_count, writes.call_count) == (3, 3)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2 if ours.dtype == torch.bfloat16 else 1e-4, atol=1e-5)


def check_other_logits_go_to_torch(device: str) -> None:
    logits, targets = draw(4, 4, 1, None, torch.float32, device)
    for other in (logits.double(), logits.t(), logits[:0]):
        assert dispatch.row_kernels(logits) and not dispatch.row_kernels(other)
        found = vocab_parallel_log_probs_and_entropy(other, targets[: len(other)], tp_group=None)
        expected = reference.log_probs_and_entropy(other, targets[: len(other)])
        torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-6, atol=1e-6)


CHECKS = {
    f"values and gradients {shape}": lambda device, index=index: check_values_and_gradients_against_float64(
        device, index
    )
    for index, shape in enumerate(SHAPES)
} | {
    name.removeprefix("check_").replace("_", " "): check
    for name, check in list(globals().items())
    if name.startswith("check_") and check is not check_values_and_gradients_against_float64
}


if __name__ == "__main__":
    print_failures(CHECKS)

"""Log-probs and entropy over a sharded vocabulary equal the unsharded float64 ones, in value and in gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

from megacov.ops import (
    linear_log_probs_and_entropy,
    linear_min_p_log_probs,
    vocab_parallel_log_probs_and_entropy,
    vocab_parallel_min_p_log_probs,
    vocab_parallel_sums,
)
from tests.support import reference
from tests.support.run_ranks import run_cases

pytestmark = pytest.mark.dist

PADDED_VOCAB, HIDDEN, MIN_P = 48, 8, 0.05


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype = torch.float32
    temperature: float = 1.0
    vocab_size: int | None = None
    entropy_grad: bool = False
    shape: tuple[int, ...] = (3, 5)
    bad_target: bool = False
    by_position: bool = False

    @property
    def temperatures(self) -> float | torch.Tensor:
        """The temperature, or one for each position that ranges from it to four times as much."""
        if not self.by_position:
            return self.temperature
        return torch.linspace(1, 4, math.prod(self.shape)).view(self.shape) * self.temperature

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Whole logits, targets and the loss weights of both results; equal in every process."""
        generator = torch.Generator().manual_seed(0)
        logits = (torch.randn(*self.shape, PADDED_VOCAB, generator=generator) * 4).to(self.dtype)
        targets = torch.randint(0, self.vocab_size or PADDED_VOCAB, self.shape, generator=generator)
        if self.bad_target:
            targets.view(-1)[1] = self.vocab_size or PADDED_VOCAB
        weights = torch.randn(2, *self.shape, generator=generator)
        return logits, targets, weights[0], weights[1] * self.entropy_grad

    def min_p_targets(self) -> torch.Tensor:
        """Targets of which some are among the most probable entries of the logits."""
        logits, targets, _, _ = self.inputs()
        order = logits[..., : self.vocab_size].argsort(dim=-1, descending=True, stable=True)
        places = torch.arange(targets.numel()).view(self.shape) % 4
        return order.gather(-1, places.unsqueeze(-1)).squeeze(-1)

    def linear_inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states and the whole weight of an output layer."""
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(*self.shape, HIDDEN, generator=generator)
        return hidden.to(self.dtype), torch.randn(PADDED_VOCAB, HIDDEN, generator=generator).to(self.dtype)


CASES = [
    *(
        Case(dtype=dtype, temperature=temperature, vocab_size=vocab_size, entropy_grad=entropy_grad)
        for dtype in (torch.float32, torch.bfloat16)
        for temperature in (1.0, 0.6)
        # No padding; padding in the last shard; padding from inside the first shard, so that others hold nothing else.
        for vocab_size in (None, 41, 7)
        for entropy_grad in (False, True)
    ),
    Case(dtype=torch.float64, temperature=0.6, vocab_size=41, entropy_grad=True),
    *(
        Case(dtype=dtype, temperature=0.4, vocab_size=41, entropy_grad=True, by_position=True)
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    ),
    Case(shape=(1,)),
    Case(shape=(4, 0), entropy_grad=True),
]


def _run(case: Case) -> dict:
    group, rank, size = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    logits, targets, log_prob_weights, entropy_weights = case.inputs()
    shard = logits.chunk(size, -1)[rank].clone().requires_grad_()
    before = shard.detach().clone()
    comm = CommDebugMode()
    with comm:
        log_probs, entropy = vocab_parallel_log_probs_and_entropy(
            shard,
            targets,
            tp_group=group,
            temperature=case.temperatures,
            entropy_grad=case.entropy_grad,
            vocab_size=case.vocab_size,
        )
        forward_collectives = dict(comm.get_comm_counts())
        (log_probs * log_prob_weights + entropy * entropy_weights).sum().backward()
    with CommDebugMode() as comm_of_sums:
        sums = vocab_parallel_sums(
            shard, targets, tp_group=group, temperature=case.temperatures, vocab_size=case.vocab_size
        )
    return {
        **_run_linear(case),
        **_run_min_p(case, shard),
        "sums": sums,
        "num_for_sums": comm_of_sums.get_total_counts(),
        "log_probs": log_probs.detach(),
        "entropy": entropy.detach(),
        "grad": shard.grad,
        "is_unchanged": torch.equal(shard.detach().view(torch.uint8), before.view(torch.uint8)),
        "num_forward": sum(forward_collectives.values()),
        "num_total": comm.get_total_counts(),
    }


def _run_linear(case: Case) -> dict:
    group, rank, size = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    hidden, weight = case.linear_inputs()
    leaves = hidden.requires_grad_(), weight.chunk(size)[rank].clone().requires_grad_()
    _, targets, log_prob_weights, entropy_weights = case.inputs()
    with CommDebugMode() as comm:
        log_probs, entropy = linear_log_probs_and_entropy(
            *leaves,
            targets,
            tp_group=group,
            temperature=case.temperatures,
            entropy_grad=case.entropy_grad,
            vocab_size=case.vocab_size,
            chunk_tokens=4,
        )
        num_forward = comm.get_total_counts()
        (log_probs * log_prob_weights + entropy * entropy_weights).sum().backward()
    return {
        "linear": [log_probs.detach(), entropy.detach(), leaves[0].grad],
        "weight_grad": leaves[1].grad,
        "num_for_linear": (num_forward, comm.get_total_counts()),
    }


def _run_min_p(case: Case, shard: torch.Tensor) -> dict:
    group, targets = dist.group.WORLD, case.min_p_targets()
    arguments = {"min_p": MIN_P, "tp_group": group, "vocab_size": case.vocab_size}
    with CommDebugMode() as comm:
        found = vocab_parallel_min_p_log_probs(shard, targets, temperature=case.temperatures, **arguments)
    hidden, weight = case.linear_inputs()
    own, temperature = weight.chunk(dist.get_world_size())[dist.get_rank()], case.temperatures
    linear = linear_min_p_log_probs(
        hidden.view(-1, HIDDEN),
        own,
        targets.view(-1),
        temperature=temperature.view(-1) if case.by_position else temperature,
        chunk_tokens=4,
        **arguments,
    )
    return {"min_p": found, "linear_min_p": linear.view(targets.shape), "num_for_min_p": comm.get_total_counts()}


@pytest.fixture(scope="module", params=[2, 4], ids=["tp2", "tp4"])
def results(request) -> list[list[dict]]:
    return run_cases(_run, [(case,) for case in CASES], world_size=request.param)


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_equals_unsharded_float64(results, index):
    case = CASES[index]
    logits, targets, log_prob_weights, entropy_weights = case.inputs()
    leaf = logits.double().requires_grad_()
    log_probs, entropy = reference.log_probs_and_entropy(
        leaf, targets, temperature=case.temperatures, vocab_size=case.vocab_size
    )
    (log_probs * log_prob_weights + entropy * entropy_weights).sum().backward()

    grad = torch.cat([result["grad"] for result in results[index]], -1)
    assert grad.dtype == case.dtype
    torch.testing.assert_close(results[index][0]["log_probs"].double(), log_probs.detach(), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(results[index][0]["entropy"].double(), entropy.detach(), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(grad.double(), leaf.grad, rtol=max(torch.finfo(case.dtype).eps, 1e-5), atol=1e-6)


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_sums_of_squares_equal_unsharded_float64(results, index):
    case = CASES[index]
    expected = reference.square_sums(case.inputs()[0], temperature=case.temperatures, vocab_size=case.vocab_size)
    for result in results[index]:
        for found, value in zip(result["sums"][2:], expected, strict=True):
            torch.testing.assert_close(found.double(), value, rtol=3e-6, atol=2e-6)
            assert torch.equal(result["sums"].log_probs, result["log_probs"])
            assert torch.equal(result["sums"].entropy, result["entropy"])
        assert all(map(torch.equal, result["sums"], results[index][0]["sums"]))


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_without_improbable_entries_it_equals_unsharded_float64(results, index):
    case = CASES[index]
    targets, hidden, weight = case.min_p_targets(), *case.linear_inputs()
    settings = {"min_p": MIN_P, "temperature": case.temperatures, "vocab_size": case.vocab_size}
    from_logits = reference.min_p_log_probs(case.inputs()[0], targets, **settings)
    products = (hidden @ weight.t()).double()  # rounded as the op rounds them, so that the same entries are kept
    from_hidden = reference.min_p_log_probs(products, targets, **settings)
    for result in results[index]:
        torch.testing.assert_close(result["min_p"].double(), from_logits, rtol=3e-6, atol=3e-6)
        torch.testing.assert_close(result["linear_min_p"].double(), from_hidden, rtol=1e-5, atol=1e-5)
        assert torch.equal(result["min_p"], results[index][0]["min_p"])
        assert result["num_for_min_p"] == (0 if 0 in case.shape else 2)


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_from_hidden_states_equals_unsharded_float64(results, index):
    case = CASES[index]
    _, targets, log_prob_weights, entropy_weights = case.inputs()
    hidden, weight = (tensor.double().requires_grad_() for tensor in case.linear_inputs())
    log_probs, entropy = reference.log_probs_and_entropy(
        hidden @ weight.t(), targets, temperature=case.temperatures, vocab_size=case.vocab_size
    )
    (log_probs * log_prob_weights + entropy * entropy_weights).sum().backward()
    # Logits, their gradient and each product are rounded to the dtype of the hidden states.
    tolerance = 12 * torch.finfo(case.dtype).eps
    for result in results[index]:
        values = zip(result["linear"], (log_probs.detach(), entropy.detach(), hidden.grad), strict=True)
        for found, expected in values:
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        assert all(map(torch.equal, result["linear"], results[index][0]["linear"]))
    grad = torch.cat([result["weight_grad"] for result in results[index]])
    assert grad.dtype == case.dtype
    torch.testing.assert_close(grad.double(), weight.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["log_probs", "entropy"])
def test_all_ranks_hold_the_same_bits(results, name):
    for by_rank in results:
        for result in by_rank[1:]:
            assert torch.equal(result[name], by_rank[0][name])


def test_one_collective_forward_and_none_backward_but_that_of_hidden_states(results):
    for case, by_rank in zip(CASES, results, strict=True):
        expected = 0 if 0 in case.shape else 1
        assert {(result["num_forward"], result["num_total"]) for result in by_rank} == {(expected, expected)}
        assert {result["num_for_sums"] for result in by_rank} == {expected}
        # The gradient of the hidden states is summed, as Megatron's ColumnParallelLinear does.
        assert {result["num_for_linear"] for result in by_rank} == {(expected, expected + 1)}


def test_the_logits_are_not_written_to(results):
    assert all(result["is_unchanged"] for by_rank in results for result in by_rank)


def _refusal(case: Case) -> tuple[str, int]:
    logits, targets, _, _ = case.inputs()
    shard = logits.chunk(dist.get_world_size(), -1)[dist.get_rank()]
    with CommDebugMode() as comm, pytest.raises(ValueError, match="outside the vocabulary") as caught:
        vocab_parallel_log_probs_and_entropy(shard, targets, tp_group=dist.group.WORLD, vocab_size=case.vocab_size)
    return str(caught.value), comm.get_total_counts()


def test_a_bad_target_is_refused_on_all_ranks_before_any_collective():
    cases = [(Case(bad_target=True),), (Case(bad_target=True, vocab_size=30),)]
    for by_rank in run_cases(_refusal, cases, world_size=2):
        assert by_rank[0] == by_rank[1]
        assert by_rank[0][1] == 0

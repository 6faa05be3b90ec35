"""Checks of the kernels of the selection, run on a GPU or, as a program with TRITON_INTERPRET=1, in the interpreter."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from unittest import mock

import torch
import torch.distributed as dist

from megacov.ops import covariance, masked_extremes
from megacov.ops.kernels import covariance as covariance_kernels
from megacov.ops.kernels import dispatch
from megacov.ops.kernels import extremes as extremes_kernels
from megacov.selection import global_top_k, select_clip_cov, select_kl_cov
from megacov.selection.kernels import radix
from tests.support.kernel_program import print_failures
from tests.support.top_k_cases import generate_cases

# More than one block for each program of the interpreter, and a last block that is not full.
MANY = 3 * radix.BLOCK + 777
NUM_CASES = 24
NUM_SHARED_CASES = 12


def to_torch() -> mock._patch_dict:
    """Within it the torch path runs."""
    return mock.patch.dict(os.environ, {dispatch.VARIABLE: "0"})


def check_equals_a_sort(device: str) -> None:
    for case in generate_cases(NUM_CASES):
        scores, kept_mask, token_ids = (tensor.to(device) for tensor in case.tensors())
        selected = global_top_k(scores, kept_mask, token_ids, k=case.k, group=None)
        assert set(token_ids[selected].tolist()) == case.expected_ids(), case


def check_many_tokens_with_few_values(device: str) -> None:
    """Most tokens are tied, so that the lists of the last digits are long."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(MANY, generator=generator)
    kept_mask = (torch.rand(MANY, generator=generator) < 0.8).to(device)
    token_ids = torch.randperm(MANY, generator=generator).to(device)
    for scores in (normal, (normal * 2).round(), torch.zeros(MANY), normal.double() * 1e300, normal.bfloat16()):
        for k in (1, MANY // 2):
            there = scores.to(device)
            selected = global_top_k(there, kept_mask, token_ids, k=k, group=None)
            with to_torch():
                assert torch.equal(selected, global_top_k(there, kept_mask, token_ids, k=k, group=None)), k


def check_scores_that_lie_apart_are_left_alone(device: str) -> None:
    wide = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).to(device)
    before, scores = wide.clone(), wide[:, 3:20]
    kept_mask = torch.ones_like(scores, dtype=torch.bool)
    token_ids = torch.arange(scores.numel(), device=device).view_as(scores)
    selected = global_top_k(scores, kept_mask, token_ids, k=9, group=None)
    assert torch.equal(scores[selected].sort().values, scores.flatten().sort().values[-9:])
    assert torch.equal(wide, before)


@mock.patch.object(covariance_kernels, "_MAX_PROGRAMS", 2)
def check_the_covariance_has_the_bits_of_torch(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    block = covariance_kernels.BLOCK
    for num_tokens in (0, 1, block - 1, block + 1, 3 * block + 5):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            log_probs = (torch.rand(num_tokens, generator=generator) * -20).to(device, dtype)
            advantages = torch.randn(num_tokens, generator=generator).to(device)
            kept_mask = (torch.rand(num_tokens, generator=generator) < 0.8).to(device)
            log_probs[~kept_mask] = torch.nan
            found = covariance(log_probs, advantages, kept_mask, group=None)
            with to_torch():
                assert torch.equal(found, covariance(log_probs, advantages, kept_mask, group=None))


@mock.patch.object(extremes_kernels, "_MAX_PROGRAMS", 2)
def check_extremes_are_those_of_torch(device: str) -> None:
    """Two programs take several blocks each."""
    generator = torch.Generator().manual_seed(0)
    block = extremes_kernels.BLOCK
    for num_tokens in (0, 1, block - 1, 3 * block + 5):
        drawn = torch.randn(num_tokens, generator=generator).to(device)
        mask = (torch.rand(num_tokens, generator=generator) < 0.8).to(device)
        for value, is_masked in (
            (0.5, True),
            (torch.nan, False),
            (torch.inf, True),
            (-torch.inf, True),
            (torch.nan, True),
        ):
            values, kept = drawn.clone(), mask.clone()
            values[num_tokens // 2 :: block], kept[num_tokens // 2 :: block] = value, is_masked
            for within in (kept, torch.zeros_like(kept)):
                with mock.patch.object(
                    extremes_kernels, "extremes_of_programs", wraps=extremes_kernels.extremes_of_programs
                ) as reads:
                    found = masked_extremes(values, within, group=None)
                assert reads.call_count == (num_tokens > 0)
                with to_torch():
                    expected = masked_extremes(values, within, group=None)
                for one, other in zip(found, expected, strict=True):
                    torch.testing.assert_close(one, other, rtol=0.0, atol=0.0, equal_nan=True)


def check_values_beyond_the_limits_of_exact_sums(device: str) -> None:
    ones = torch.ones(3, dtype=torch.bool, device=device)
    advantages = torch.tensor([1.0, -1.0, 0.5], device=device)
    for values in ([3e9, -7e10, 0.3], [1e30, 2.0, -5e29], [torch.inf, 0.0, 1.0], [torch.nan, 0.0, 1.0]):
        log_probs = torch.tensor(values, device=device)
        found = covariance(log_probs, advantages, ones, group=None)
        with to_torch():
            expected = covariance(log_probs, advantages, ones, group=None)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0, equal_nan=True)


def check_the_public_functions_call_the_kernels(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = (torch.rand(5, 200, generator=generator) * -9).to(device)
    advantages = (torch.randn(5, 200, generator=generator) * 3).to(device)
    kept_mask = (torch.rand(5, 200, generator=generator) < 0.8).to(device)
    token_ids = torch.arange(1000, device=device).view(5, 200)

    def select() -> tuple[torch.Tensor, ...]:
        cov = covariance(log_probs, advantages, kept_mask, group=None)
        assert cov.shape == log_probs.shape
        by_covariance = select_kl_cov(cov, kept_mask, token_ids, ratio=0.05, group=None)
        bounds = {"ratio": 0.05, "lower": 1.0, "upper": 5.0, "seed": 3, "update": 2, "group": None}
        return by_covariance, select_clip_cov(cov, kept_mask, kept_mask, token_ids, **bounds)

    with (
        mock.patch.object(radix, "select_top_k", wraps=radix.select_top_k) as selects,
        mock.patch.object(covariance_kernels, "write_covariance", wraps=covariance_kernels.write_covariance) as writes,
    ):
        found = select()
        assert (selects.call_count, writes.call_count) == (2, 1)
        with to_torch():
            expected = select()
        assert (selects.call_count, writes.call_count) == (2, 1)
    assert all(torch.equal(*pair) and pair[0].any() for pair in zip(found, expected, strict=True))


def check_two_ranks_select_as_one(device: str) -> None:
    """With gloo and the CPU only: one rank may have no token at all."""
    if device != "cpu":
        return
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ends = []
        for rank in range(2):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_send_selected, args=(rank, f"{folder}/store", sender), daemon=True)
            process.start()
            ends.append((process, receiver))
        chosen = []
        for process, receiver in ends:
            assert receiver.poll(120), "a rank sent nothing in two minutes"
            chosen.append(receiver.recv())
            process.join(60)
    for case, (first, second) in zip(generate_cases(NUM_SHARED_CASES), zip(*chosen, strict=True), strict=True):
        assert first | second == case.expected_ids() and not first & second, case


def _send_selected(rank: int, store: str, sender) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    found = []
    for case in generate_cases(NUM_SHARED_CASES):
        scores, kept_mask, token_ids = case.tensors(rank, 2)
        found.append(
            set(token_ids[global_top_k(scores, kept_mask, token_ids, k=case.k, group=dist.group.WORLD)].tolist())
        )
    sender.send(found)
    dist.destroy_process_group()


CHECKS = {
    name.removeprefix("check_").replace("_", " "): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


if __name__ == "__main__":
    print_failures(CHECKS)

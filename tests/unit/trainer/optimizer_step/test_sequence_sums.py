"""Sums over whole sequences, on one rank; the layout suite trains GSPO where ranks share sequences."""

from __future__ import annotations

import pytest
import torch

from megacov.trainer.optimizer_step.sequence_sums import add_sequence_sums
from megacov.types import LossBatch


def make_batch(log_probs: torch.Tensor, old: torch.Tensor, mask: list[bool], index: list[int]) -> LossBatch:
    zeros = torch.zeros_like(old)
    return LossBatch(log_probs, old, zeros, torch.tensor(mask), zeros, sequence_index=torch.tensor(index))


def test_hand_computed_with_masked_tokens_that_hold_anything():
    old = torch.tensor([-1.0, -2.0, -1.0, float("nan"), -0.5])
    log_probs = torch.tensor([-0.5, -2.25, float("inf"), -1.0, -1.5], requires_grad=True)
    batch = add_sequence_sums(
        make_batch(log_probs, old, [True, True, False, False, True], [3, 3, 3, 0, 0]), num_sequences=4, group=None
    )
    assert batch.sequence_log_ratio.tolist() == [0.25, 0.25, 0.25, -1.0, -1.0]
    assert batch.sequence_tokens.tolist() == [2, 2, 2, 1, 1]
    assert not batch.sequence_log_ratio.requires_grad
    assert batch.sequence_log_ratio.dtype == batch.sequence_tokens.dtype == torch.float32


def test_equal_policies_have_sums_of_exactly_zero():
    log_probs = -torch.rand(50)
    batch = make_batch(log_probs, log_probs.clone(), [True] * 50, [i % 3 for i in range(50)])
    assert (add_sequence_sums(batch, num_sequences=3, group=None).sequence_log_ratio == 0).all()


@pytest.mark.parametrize("num_sequences", [0, 5])
def test_a_rank_without_a_token(num_sequences):
    empty = torch.zeros(0)
    batch = LossBatch(empty, empty, empty, empty.bool(), empty, sequence_index=empty.long())
    assert add_sequence_sums(batch, num_sequences=num_sequences, group=None).sequence_tokens.shape == (0,)

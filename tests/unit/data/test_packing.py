"""A plan of micro-batches holds every sample once, whatever the layout, and knows where its tokens are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacov.data.packing import balance, build_rollout_batch, make_micro_batch, plan_micro_batches, update_ranges
from megacov.errors import DataError
from megacov.types import Completion, Prompt, RolloutBatch, Sample, VersionSpan


def _sample(prompt: tuple[int, ...], response: tuple[int, ...], *, group: int = 0, reward: float = 0.0) -> Sample:
    completion = Completion(
        response, tuple(-0.5 * (i + 1) for i in range(len(response))), "", "stop", (VersionSpan("0", 0, len(response)),)
    )
    return Sample(Prompt(group, "", prompt, ""), completion, group, reward)


def _batch(lengths: list[tuple[int, int]], max_response_length: int = 20) -> RolloutBatch:
    samples = [
        _sample(tuple(range(1, p + 1)), tuple(range(100 * i, 100 * i + r)), group=i // 2)
        for i, (p, r) in enumerate(lengths)
    ]
    return build_rollout_batch(samples, max_response_length=max_response_length)


def test_rollout_batch_lays_samples_out() -> None:
    batch = build_rollout_batch(
        [_sample((5, 6), (7, 8, 9), reward=1.0), _sample((5,), (), group=1, reward=0.25)], max_response_length=4
    )
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9], [5, 0, 0, 0, 0]]
    assert batch.loss_mask.tolist() == [[True, True, True], [False, False, False]]
    assert batch.rollout_log_probs.tolist() == [[-0.5, -1.0, -1.5], [0.0, 0.0, 0.0]]
    assert batch.rewards.tolist() == [1.0, 0.25]
    assert batch.group_ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        ([_sample((5,), ())], "no completion of this rollout has a token"),
        ([_sample((5,), (6, 7, 8))], "3 tokens but rollout.max_response_length is 2"),
    ],
)
def test_rollout_batch_refuses_what_cannot_be_learned_from(samples: list[Sample], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        build_rollout_batch(samples, max_response_length=2)


def test_micro_batch_points_at_the_logits_of_each_response_token() -> None:
    batch = _batch([(3, 2), (1, 4), (2, 0)])
    micro_batch = make_micro_batch(batch, [1, 2, 0])
    predicted = micro_batch.tokens[micro_batch.rows, micro_batch.columns + 1]
    assert predicted.tolist() == [100, 101, 102, 103, 0, 1]
    assert micro_batch.token_ids.tolist() == [20, 21, 22, 23, 0, 1]
    assert micro_batch.tokens.shape == (3, 5)


def test_a_rank_without_samples_gets_a_micro_batch_without_tokens() -> None:
    plan = plan_micro_batches(_batch([(3, 2)]), num_updates=1, micro_batch_size=2, dp_rank=1, dp_size=2)
    assert len(plan) == 1
    assert len(plan[0]) == 1
    assert plan[0][0].tokens.shape == (1, 1)
    assert plan[0][0].token_ids.numel() == 0


@settings(deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=24).filter(
        lambda lengths: any(r for _, r in lengths)
    ),
    num_updates=st.integers(1, 4),
    micro_batch_size=st.integers(1, 5),
    dp_size=st.integers(1, 5),
)
def test_every_token_is_in_exactly_one_micro_batch_of_its_own_update(
    lengths: list[tuple[int, int]], num_updates: int, micro_batch_size: int, dp_size: int
) -> None:
    batch = _batch(lengths)
    plans = [
        plan_micro_batches(
            batch, num_updates=num_updates, micro_batch_size=micro_batch_size, dp_rank=rank, dp_size=dp_size
        )
        for rank in range(dp_size)
    ]
    for update, samples in enumerate(update_ranges(len(lengths), num_updates=num_updates)):
        parts = [micro_batch for plan in plans for micro_batch in plan[update]]
        assert all(len(part.sample_ids) <= micro_batch_size for part in parts)
        assert sorted(i for part in parts for i in part.sample_ids.tolist()) == list(samples)
        token_ids = sorted(i for part in parts for i in part.token_ids.tolist())
        assert token_ids == [i * 20 + j for i in samples for j in range(lengths[i][1])]
        for part in parts:
            assert torch.equal(part.tokens[part.rows, part.columns + 1] % 100, part.token_ids % 20)


@settings(deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=60), num_parts=st.integers(1, 8))
def test_balance_is_within_one_sequence(lengths: list[int], num_parts: int) -> None:
    parts = balance(lengths, num_parts=num_parts)
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert max(loads) - min(loads) <= max(lengths)

"""A plan of micro-batches holds every sample once in any layout, and locates its tokens correctly."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacov.advantages import group_relative
from megacov.data.micro_batch import SequenceLayout, make_micro_batch
from megacov.data.packing import (
    MicroBatchSettings,
    balance,
    build_rollout_batch,
    cut,
    num_overlong,
    plan_micro_batches,
    update_ranges,
)
from megacov.errors import DataError
from megacov.types import Completion, FinishReason, MicroBatch, Prompt, RolloutBatch, Sample, VersionSpan


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
    assert batch.num_positions.tolist() == [4, 1]
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


def _ended(response: tuple[int, ...], reason: FinishReason, *, group: int, reward: float) -> Sample:
    sample = _sample((5, 6), response, group=group, reward=reward)
    return replace(sample, completion=replace(sample.completion, finish_reason=reason))


def test_overlong_responses_carry_no_loss_and_keep_their_place_and_reward() -> None:
    samples = [
        _ended((7, 8, 9), "length", group=0, reward=0.0),
        _ended((7, 8), "stop", group=0, reward=1.0),
        _ended((), "length", group=1, reward=0.0),
        _ended((7, 8, 9), "stop", group=1, reward=1.0),
    ]
    plain = build_rollout_batch(samples, max_response_length=3, temperatures=(0.5,))
    masked = build_rollout_batch(samples, max_response_length=3, mask_overlong=True, temperatures=(0.5,))
    assert plain.loss_mask.sum(dim=1).tolist() == [3, 2, 0, 3]
    assert masked.loss_mask.tolist() == [[False] * 3, [True, True, False], [False] * 3, [True] * 3]
    for field in fields(RolloutBatch):
        if field.name not in ("loss_mask", "max_response_length", "verdicts"):
            assert torch.equal(getattr(plain, field.name), getattr(masked, field.name)), field.name
    assert plain.verdicts is None and masked.verdicts is None
    penalised = build_rollout_batch(samples, max_response_length=3, penalties=[0.0, 0.5, 0.0, 0.0])
    assert penalised.rewards.tolist() == [0.0, 0.5, 0.0, 1.0]
    assert penalised.verdicts is not None and penalised.verdicts.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert num_overlong(samples) == 1, "one without a token has nothing to mask"
    advantages = group_relative(masked.rewards, masked.group_ids, normalize_std=False)
    assert advantages.tolist() == [-0.5, 0.5, -0.5, 0.5], "an overlong response counts in the mean of its group"
    for masks, micro_batches in ((plain, [8]), (masked, [5])):
        (plan,) = plan_micro_batches(masks, MicroBatchSettings(64, SequenceLayout(packed=True)), num_updates=1)
        assert [int(micro_batch.loss_mask.sum()) for micro_batch in plan] == micro_batches
    with pytest.raises(DataError, match="mask_overlong leaves no token .* cut all 1 responses"):
        build_rollout_batch([samples[0], samples[2]], max_response_length=3, mask_overlong=True)


LAYOUTS = [
    SequenceLayout(),
    SequenceLayout(packed=True),
    SequenceLayout(share_multiple=4),
    SequenceLayout(packed=True, share_multiple=4),
    SequenceLayout(cp_size=2),
    SequenceLayout(packed=True, cp_size=2, share_multiple=3),
    SequenceLayout(packed=True, cp_size=4),
]


def _every_rank(batch: RolloutBatch, ids: list[int], layout: SequenceLayout) -> list[MicroBatch]:
    return [make_micro_batch(batch, ids, replace(layout, cp_rank=rank)) for rank in range(layout.cp_size)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_micro_batch_points_at_the_logits_of_each_response_token(layout: SequenceLayout) -> None:
    batch = replace(_batch([(3, 2), (1, 4), (2, 0)]), temperatures=torch.tensor([0.5, 1.0, 2.0]))
    predicted = {}
    for part in _every_rank(batch, [1, 2, 0], layout):
        places = part.predicting
        predicted |= dict(zip(part.token_ids.tolist(), part.targets.flatten()[places].tolist(), strict=True))
        # The token before the response token is at the place that its position in the sample gives.
        for sample, place in zip(part.sample_ids.tolist(), places.tolist(), strict=True):
            position = int(part.positions.flatten()[place])
            assert part.tokens.flatten()[place] == batch.tokens[sample, position]
        assert part.temperatures is not None
        assert part.temperatures.shape == part.tokens.shape
        assert torch.equal(part.temperatures.flatten()[places], batch.temperatures[part.sample_ids])
        assert part.tokens.shape[1] % layout.share_multiple == 0
        assert part.tokens.shape[0] == (1 if layout.packed else 3)
    assert predicted == {20: 100, 21: 101, 22: 102, 23: 103, 0: 0, 1: 1}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_of_a_context_parallel_group_share_every_position(layout: SequenceLayout) -> None:
    batch = _batch([(3, 2), (1, 4), (2, 0)])
    parts = _every_rank(batch, [0, 1], layout)
    assert len({part.tokens.shape for part in parts}) == 1
    held = sorted(int(token) for part in parts for token in part.tokens.flatten() if token != 0)
    assert held == sorted([1, 2, 3, 1, 100, 101, 102])  # nothing follows 1 and 103; response token 0 looks like padding
    if layout.packed:
        ends = parts[0].cu_seqlens
        assert ends is not None
        assert ends[-1] == parts[0].tokens.shape[1] * layout.cp_size
        assert parts[0].max_seqlen == int(ends.diff().max())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_rank_without_samples_gets_a_micro_batch_without_tokens(layout: SequenceLayout) -> None:
    plan = plan_micro_batches(
        replace(_batch([(3, 2)]), temperatures=torch.tensor([0.5])),
        MicroBatchSettings(tokens=2, dp_rank=1, dp_size=2, layout=layout, count_multiple=2),
        num_updates=1,
    )
    assert [len(micro_batches) for micro_batches in plan] == [2]
    for micro_batch in plan[0]:
        assert micro_batch.tokens.shape == (1, layout.row_multiple // layout.cp_size)
        assert not micro_batch.tokens.any()
        assert micro_batch.token_ids.numel() == 0
        assert (micro_batch.temperatures > 0).all()


@settings(deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=24).filter(
        lambda lengths: any(r for _, r in lengths)
    ),
    num_updates=st.integers(1, 4),
    micro_batch_tokens=st.integers(1, 80),
    dp_size=st.integers(1, 5),
    count_multiple=st.integers(1, 3),
    layout=st.sampled_from(LAYOUTS),
)
def test_every_token_is_in_exactly_one_micro_batch_of_its_own_update(
    lengths: list[tuple[int, int]],
    num_updates: int,
    micro_batch_tokens: int,
    dp_size: int,
    count_multiple: int,
    layout: SequenceLayout,
) -> None:
    batch = _batch(lengths)
    plans = [
        plan_micro_batches(
            batch,
            MicroBatchSettings(
                tokens=micro_batch_tokens,
                dp_rank=rank // layout.cp_size,
                dp_size=dp_size,
                layout=replace(layout, cp_rank=rank % layout.cp_size),
                count_multiple=count_multiple,
            ),
            num_updates=num_updates,
        )
        for rank in range(dp_size * layout.cp_size)
    ]
    for update, samples in enumerate(update_ranges(len(lengths), num_updates=num_updates)):
        assert all(len(plan[update]) % count_multiple == 0 for plan in plans)
        parts = [micro_batch for plan in plans for micro_batch in plan[update]]
        token_ids = sorted(i for part in parts for i in part.token_ids.tolist())
        assert token_ids == [i * 20 + j for i in samples for j in range(lengths[i][1])]
        for part in parts:
            assert torch.equal(part.token_ids // 20, part.sample_ids)
            assert torch.equal(part.targets.flatten()[part.predicting] % 100, part.token_ids % 20)


@settings(deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    micro_batch_tokens=st.integers(1, 120),
    layout=st.sampled_from(LAYOUTS),
)
def test_a_forward_pass_holds_at_most_its_tokens(
    lengths: list[int], micro_batch_tokens: int, layout: SequenceLayout
) -> None:
    parts = cut(lengths, micro_batch_tokens=micro_batch_tokens, layout=layout)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        positions = sum(layout.padded_lengths([lengths[i] for i in part]))
        # A packed row has additional padding of less than one multiple.
        assert len(part) == 1 or positions < micro_batch_tokens + layout.row_multiple


@settings(deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=60), num_parts=st.integers(1, 8))
def test_balance_is_within_one_sequence(lengths: list[int], num_parts: int) -> None:
    parts = balance(lengths, num_parts=num_parts)
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert max(loads) - min(loads) <= max(lengths)


def test_ranks_that_share_experts_have_as_many_micro_batches_as_the_busiest():
    batch = _batch([(8, 8), (2, 1), (2, 1)])
    plans = [
        plan_micro_batches(
            batch,
            MicroBatchSettings(
                tokens=2, dp_rank=rank, dp_size=2, layout=SequenceLayout(), count_multiple=1, same_count=same
            ),
            num_updates=1,
        )
        for same in (False, True)
        for rank in (0, 1)
    ]
    assert [len(plan[0]) for plan in plans] == [1, 2, 2, 2]
    assert [len(part.token_ids) for part in plans[2][0]] == [8, 0]

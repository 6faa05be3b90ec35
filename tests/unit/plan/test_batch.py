"""Batch arithmetic agrees with the packing code."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from megacov.data.micro_batch import SequenceLayout
from megacov.data.packing import cut
from megacov.plan import Batch, Layout, plan_batch

PAPER = Batch(
    prompts=256,
    samples_per_prompt=8,
    max_prompt_length=2048,
    max_response_length=8192,
    updates=8,
    micro_batch_tokens=20480,
    steps=140,
)


def test_the_batch_of_the_paper() -> None:
    plan = plan_batch(PAPER, Layout(8, True, data=4))
    assert (plan.sequences, plan.sequences_per_update, plan.sequences_per_rank) == (2048, 256, 64)
    assert (plan.longest, plan.micro_batches) == (10240, 32)
    assert (plan.positions, plan.positions_per_rank) == (20480, 20480)
    assert (plan.tokens_per_update, plan.total_updates) == (2621440, 1120)


@pytest.mark.parametrize(
    ("layout", "tokens", "packed"),
    list(
        product(
            (Layout(), Layout(2, True), Layout(context=2), Layout(2, True, context=4), Layout(2, context=4)),
            (10, 101, 205, 250, 1000),
            (False, True),
        )
    ),
)
def test_micro_batches_are_cut_as_in_training(layout: Layout, tokens: int, packed: bool) -> None:
    batch = Batch(4, 4, 40, 61, updates=2, micro_batch_tokens=tokens, steps=1)
    plan = plan_batch(batch, layout)
    share = layout.tensor if layout.sequence else 1
    rows = SequenceLayout(packed=packed, cp_size=layout.context, share_multiple=share)
    parts = cut([101] * plan.sequences_per_rank, micro_batch_tokens=tokens, layout=rows)
    positions = max(sum(rows.padded_lengths([101] * len(part))) for part in parts)
    assert positions <= plan.positions
    # Sequences of a packed row share its padding, so one more sometimes fits, but never one fewer.
    assert len(parts) == plan.micro_batches or (packed and len(parts) < plan.micro_batches)


def test_uneven_shares_and_virtual_stages() -> None:
    batch = Batch(5, 2, 4, 4, updates=1, micro_batch_tokens=8, steps=1)
    plan = plan_batch(batch, Layout(pipeline=2, virtual_pipeline=2, data=4))
    assert plan.sequences_per_rank == 3
    assert plan.micro_batches == 4  # three, rounded up to a multiple of the stages


def test_a_rank_with_little_work_does_not_fill_a_micro_batch() -> None:
    plan = plan_batch(Batch(1, 2, 5, 5, updates=1, micro_batch_tokens=1000, steps=1), Layout(data=2))
    assert plan.positions == 10


def test_the_largest_of_unequal_optimizer_steps_counts() -> None:
    plan = plan_batch(replace(PAPER, updates=9), Layout(8, True, data=4))
    assert (plan.sequences_per_update, plan.sequences_per_rank) == (228, 57)

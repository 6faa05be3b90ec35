"""Batch arithmetic: from prompts to the positions of one forward pass on one rank.

The rules are those of `megacov.data.packing`, for the case that takes most memory: all sequences have the greatest
length.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from megacov.plan.layout import Layout


@dataclass(frozen=True)
class Batch:
    """Sizes that a configuration sets.

    samples_per_prompt: the most, where sources differ in them.
    updates: optimizer steps that share a rollout batch.
    steps: rollout batches of the run.
    micro_batch_tokens: most positions of a forward pass; a sequence that is longer has a pass of its own.
    """

    prompts: int
    samples_per_prompt: int
    max_prompt_length: int
    max_response_length: int
    updates: int
    micro_batch_tokens: int
    steps: int


@dataclass(frozen=True)
class BatchPlan:
    """Sizes that follow from `Batch` and the layout.

    sequences: sequences of a rollout batch.
    sequences_per_update: sequences of an optimizer step (mini-batch), over all ranks.
    sequences_per_rank: sequences of an optimizer step on the data-parallel rank that has most.
    longest: positions of the longest sequence, including padding.
    micro_batches: forward passes of an optimizer step on that rank, if all sequences have that length.
    positions: positions of the fullest forward pass, over its context-parallel ranks.
    positions_per_rank: positions of that pass on one of these ranks.
    tokens_per_update: most tokens that an optimizer step can hold, over all ranks.
    total_updates: optimizer steps of the run.
    """

    sequences: int
    sequences_per_update: int
    sequences_per_rank: int
    longest: int
    micro_batches: int
    positions: int
    positions_per_rank: int
    tokens_per_update: int
    total_updates: int


def plan_batch(batch: Batch, layout: Layout) -> BatchPlan:
    """Follow a rollout batch down to one forward pass."""
    sequences = batch.prompts * batch.samples_per_prompt
    per_update = -(-sequences // batch.updates)
    per_rank = -(-per_update // layout.data)
    unpadded = batch.max_prompt_length + batch.max_response_length
    # SequenceLayout pads so that the zigzag gets 2 x CP equal chunks and sequence parallelism gets TP equal parts.
    zigzag = 1 if layout.context == 1 else 2 * layout.context
    longest = _round_up(unpadded, lcm(zigzag, layout.context * layout.sequence_share))
    per_pass = max(1, batch.micro_batch_tokens // longest)
    micro_batches = -(-per_rank // per_pass)
    if layout.virtual_pipeline > 1:
        micro_batches = _round_up(micro_batches, layout.pipeline)
    # Shorter sequences fill a packed pass up to its limit, if the rank has enough of them.
    positions = max(longest, min(batch.micro_batch_tokens, per_rank * longest))
    return BatchPlan(
        sequences=sequences,
        sequences_per_update=per_update,
        sequences_per_rank=per_rank,
        longest=longest,
        micro_batches=micro_batches,
        positions=positions,
        positions_per_rank=-(-positions // layout.context),
        tokens_per_update=per_update * unpadded,
        total_updates=batch.steps * batch.updates,
    )


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

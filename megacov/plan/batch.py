"""Batch arithmetic: from prompts to the positions of one forward pass on one rank.

The same rules as `megacov.data.packing`, for the case that fills memory: all sequences as long as they may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from megacov.plan.layout import Layout


@dataclass(frozen=True)
class Batch:
    """What a configuration says.

    updates: optimizer steps that share a rollout batch.
    steps: rollout batches of the run.
    micro_batch_tokens: most positions of a forward pass; a longer sequence goes alone.
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
    """What follows.

    sequences: of a rollout batch.
    sequences_per_update: of an optimizer step (mini-batch), over all ranks.
    sequences_per_rank: of an optimizer step, on the data-parallel rank that has most.
    longest: positions of the longest sequence, with its padding.
    micro_batches: forward passes of an optimizer step on that rank, where all sequences are of that length.
    positions: of the fullest forward pass, over context-parallel ranks.
    positions_per_rank: on one of these.
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
    """Follow a rollout batch down to one forward pass.

    Args:
        batch: sizes; the updates divide its sequences.
        layout: of the trainer.

    Returns:
        The sizes on the way.
    """
    sequences = batch.prompts * batch.samples_per_prompt
    per_update = sequences // batch.updates
    per_rank = -(-per_update // layout.data)
    unpadded = batch.max_prompt_length + batch.max_response_length
    # As SequenceLayout pads: the zigzag cuts a sequence into 2 x CP chunks, sequence parallelism a row into TP parts.
    zigzag = 1 if layout.context == 1 else 2 * layout.context
    longest = _round_up(unpadded, lcm(zigzag, layout.context * layout.sequence_share))
    of_a_pass = max(1, batch.micro_batch_tokens // longest)
    micro_batches = -(-per_rank // of_a_pass)
    if layout.virtual_pipeline > 1:
        micro_batches = _round_up(micro_batches, layout.pipeline)
    # Shorter sequences fill a packed pass up to its limit, as far as the rank has any.
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

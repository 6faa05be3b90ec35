"""Sums over each token's whole sequence, which may be spread over ranks, for losses that read them.

A micro-batch holds whole sequences, and the ranks of a context-parallel group share each of them. So sums over that
group are sums over whole sequences, and losses need no collectives.
Shape legend: t response tokens of one micro-batch on this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.distributed import ProcessGroup

from megacov.parallel.collectives import all_reduce_max, all_reduce_sum
from megacov.trainer.optimizer_step.token_inputs import TokenInputs
from megacov.types import LossBatch


def make_sequence_sums(
    inputs: Sequence[TokenInputs], *, is_needed: bool, group: ProcessGroup | None
) -> Callable[[LossBatch], LossBatch]:
    """Make the function that completes each batch of an optimizer step before a loss reads it.

    Collectives: where needed, group: those of `count_sequences`; each call of the function, those of
    `add_sequence_sums`.

    Args:
        inputs: this rank's micro-batches of the optimizer step; empty off the last stage.
        is_needed: whether the loss reads sums; if not, a batch stays as it is.
        group: ranks that share each micro-batch; None for this rank alone.

    Returns:
        batch -> batch.
    """
    if not is_needed:
        return lambda batch: batch
    num_sequences = count_sequences(inputs, group=group)
    return lambda batch: add_sequence_sums(batch, num_sequences=num_sequences, group=group)


def count_sequences(inputs: Sequence[TokenInputs], *, group: ProcessGroup | None) -> int:
    """Rows of a table that has one for each sample of some micro-batches. Waits for the device.

    Collectives: group: MAX [1] float64, also of a rank without a token. None off the last stage, where no rank of the
    group has micro-batches.

    Args:
        inputs: this rank's micro-batches, as many as on every rank of the group.
        group: ranks that share each micro-batch; None for this rank alone.

    Returns:
        1 + the largest sample index on any rank of the group; 0 without a micro-batch or a token.
    """
    if not inputs:
        return 0
    indices = torch.cat([part.sample_index for part in inputs])
    largest = torch.cat([indices, indices.new_full((1,), -1)]).max().double().view(1)
    return int(all_reduce_max(largest, group=group)) + 1


@torch.no_grad()
def add_sequence_sums(batch: LossBatch, *, num_sequences: int, group: ProcessGroup | None) -> LossBatch:
    """Give each token the sum of d = log_probs - old_log_probs over the loss tokens of its sequence, and their number.

    Sums are float64 until the last rounding. In the first update of a rollout batch d is exactly 0, and so are they.

    Collectives: group: SUM [2, num_sequences] float64. Every rank of the group must call it, also one without a token.

    Args:
        batch: [t] tensors with `sequence_index`; masked tokens are left out, whatever they hold.
        num_sequences: more than any sequence index on any rank of the group, and equal on all of them.
        group: ranks that share the micro-batch; None for this rank alone.

    Returns:
        The batch with `sequence_log_ratio` and `sequence_tokens`, [t] float32.

    Gradient: none.
    """
    index = batch.sequence_index
    assert index is not None
    d = torch.where(batch.loss_mask, batch.log_probs.double() - batch.old_log_probs.double(), 0.0)
    table = torch.stack([d, batch.loss_mask.double()])
    sums = table.new_zeros(2, num_sequences).index_add(1, index, table)
    log_ratio, num_tokens = all_reduce_sum(sums, group=group)[:, index].float()
    return replace(batch, sequence_log_ratio=log_ratio, sequence_tokens=num_tokens)

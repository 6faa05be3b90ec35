"""Sums over whole sequences, for losses that ask for them.

A micro-batch holds whole sequences, and the ranks of a context-parallel group share each of them. So sums over that
group are sums over whole sequences, and losses need no collectives.
Shape legend: t response tokens of one micro-batch on this rank.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.distributed import ProcessGroup

from megacov.parallel.collectives import all_reduce_sum
from megacov.types import LossBatch


@torch.no_grad()
def add_sequence_sums(batch: LossBatch, *, num_sequences: int, group: ProcessGroup | None) -> LossBatch:
    """Give each token the sum of d = log_probs - old_log_probs over the kept tokens of its sequence, and their number.

    Sums are float64 until the last rounding. In the first optimizer step of a rollout batch, d is exactly 0.

    Collectives: group: SUM [2, num_sequences] float64. Every rank of the group must call it, also one without a token.

    Args:
        batch: [t] tensors with `sequence_index`; masked tokens are left out, whatever they hold.
        num_sequences: a bound above every sequence index, equal on all ranks of the group.
        group: ranks that share the micro-batch (cp); None for this rank alone.

    Returns:
        The batch with `sequence_log_ratio` and `sequence_tokens`, [t] float32.

    Gradient: none.
    """
    index = batch.sequence_index
    assert index is not None
    d = torch.where(batch.kept_mask, batch.log_probs.double() - batch.old_log_probs.double(), 0.0)
    table = torch.stack([d, batch.kept_mask.double()])
    sums = table.new_zeros(2, num_sequences).index_add(1, index, table)
    log_ratio, num_tokens = all_reduce_sum(sums, group=group)[:, index].float()
    return replace(batch, sequence_log_ratio=log_ratio, sequence_tokens=num_tokens)

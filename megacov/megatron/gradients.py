"""Whose gradient is not finite: what each rank added to the sum, as far as it can be told once the sum is made.

A reduce-scatter leaves in each rank's buffer the sum over all ranks at the place of its own shard, and the rank's
own addends elsewhere. So before it, each rank notes the extremes of its addends at that one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor


def note_own_shards(chunks: Sequence[DistributedDataParallel]) -> None:
    """Note the extremes of what this rank is about to add to its own shards. On a GPU nothing waits for the host.

    Costs a pass over one shard of the gradient. Collectives: none.

    Args:
        chunks: the virtual stages of this rank, before their gradients are reduced.
    """
    for chunk in chunks:
        # Alone in its group, a rank still has its addends after the reduction.
        chunk.own_extremes = [_extremes(shards[rank]) for shards, rank in _buckets(chunk) if len(shards) > 1]


def own_gradient_is_finite(chunks: Sequence[DistributedDataParallel]) -> bool:
    """Whether what this rank added to the gradient is finite. Waits for the device. Collectives: none.

    Args:
        chunks: the virtual stages of this rank, after their gradients were reduced.

    Returns:
        False if an addend of this rank is not finite.
    """
    for chunk in chunks:
        extremes: list[Tensor] = list(chunk.own_extremes)
        for shards, rank in _buckets(chunk):
            extremes += [_extremes(shard) for i, shard in enumerate(shards) if i != rank or len(shards) == 1]
        if extremes and not bool(torch.stack(extremes).isfinite().all()):
            return False
    return True


def _buckets(chunk: DistributedDataParallel) -> Iterator[tuple[Sequence[Tensor], int]]:
    """The shards of each bucket of the gradient, and which of them is this rank's."""
    for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
        group = buffer.data_parallel_group
        for bucket in buffer.buckets:
            yield bucket.grad_data.chunk(group.size()), group.rank()


def _extremes(values: Tensor) -> Tensor:
    """[2]: NaN where there is one. Unlike `isfinite`, it needs no second buffer of that size."""
    return torch.stack(torch.aminmax(values))

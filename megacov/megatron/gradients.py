"""When the gradients of all ranks are summed; and which ranks' were not finite, found after that.

A reduce-scatter overwrites a rank's own shard of its buffer with the sum over all ranks, and leaves the rank's own
addends in the other shards. So each rank records the extremes of its addends in its own shard beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.utils import get_model_config
from torch import Tensor, nn


@contextmanager
def summed_once(chunks: Sequence[nn.Module]) -> Iterator[None]:
    """Let several passes add to the same gradient: it is summed over replicas at the end of the context alone.

    A reduce-scatter leaves addends of this rank beside sums over all ranks, so what a later pass adds and sums again
    would be wrong.

    Collectives: at the end, unless the context fails: Megatron's gradient reduction.

    Args:
        chunks: the virtual stages of this rank.
    """
    config = get_model_config(chunks[0])
    finalize, config.finalize_model_grads_func = config.finalize_model_grads_func, None
    try:
        yield
    finally:
        config.finalize_model_grads_func = finalize
    finalize(list(chunks), None)


def note_own_shards(chunks: Sequence[DistributedDataParallel]) -> None:
    """Record the extremes of this rank's addends to its own shards. On a GPU nothing waits for the host.

    It takes one pass over one shard of the gradient. Collectives: none.

    Args:
        chunks: the virtual stages of this rank, before their gradients are reduced.
    """
    for chunk in chunks:
        # A rank alone in its group keeps its addends through the reduction.
        chunk.own_extremes = [_extremes(shards[rank]) for shards, rank in _buckets(chunk) if len(shards) > 1]


def own_gradient_is_finite(chunks: Sequence[DistributedDataParallel]) -> bool:
    """Whether this rank's addends to the gradient are finite. Waits for the device. Collectives: none.

    Args:
        chunks: the virtual stages of this rank, after their gradients were reduced.

    Returns:
        False if any addend of this rank is not finite.
    """
    for chunk in chunks:
        extremes: list[Tensor] = list(chunk.own_extremes)
        for shards, rank in _buckets(chunk):
            extremes += [_extremes(shard) for i, shard in enumerate(shards) if i != rank or len(shards) == 1]
        if extremes and not bool(torch.stack(extremes).isfinite().all()):
            return False
    return True


def _buckets(chunk: DistributedDataParallel) -> Iterator[tuple[Sequence[Tensor], int]]:
    """The shards of each bucket of the gradient, and the index of this rank's shard."""
    for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
        group = buffer.data_parallel_group
        for bucket in buffer.buckets:
            yield bucket.grad_data.chunk(group.size()), group.rank()


def _extremes(values: Tensor) -> Tensor:
    """[2]: minimum and maximum, NaN if any value is. Unlike `isfinite`, it needs no second buffer of that size."""
    return torch.stack(torch.aminmax(values))

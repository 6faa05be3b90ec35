"""Process groups, collectives that are the identity on one rank, and random numbers independent of the layout."""

from __future__ import annotations

from megacov.parallel.collectives import (
    all_gather,
    all_reduce_max,
    all_reduce_sum,
    any_rank,
    broadcast_bytes,
    broadcast_tensor,
    group_rank,
    group_size,
    reduce_scatter_sum,
)
from megacov.parallel.groups import ParallelGroups
from megacov.parallel.random import hash_64

__all__ = [
    "ParallelGroups",
    "all_gather",
    "all_reduce_max",
    "all_reduce_sum",
    "any_rank",
    "broadcast_bytes",
    "broadcast_tensor",
    "group_rank",
    "group_size",
    "hash_64",
    "reduce_scatter_sum",
]

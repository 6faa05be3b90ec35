"""The positions of a sequence that a context-parallel rank holds.

A sequence is cut into 2 * cp_size equal chunks, and rank r holds chunks r and 2 * cp_size - 1 - r. Under a causal mask
early chunks are cheap and late ones expensive, so this balances the work. Megatron-Core and Transformer Engine expect
this order (`get_batch_on_this_cp_rank`, `get_pos_emb_on_this_cp_rank`). In a packed batch each sequence is cut
separately. With one rank nothing is cut, and a sequence may have any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def zigzag_positions(length: int, *, cp_rank: int, cp_size: int) -> Tensor:
    """Positions of a sequence that one rank holds.

    Args:
        length: positions of the whole sequence, padding included; a multiple of 2 * cp_size if cp_size > 1.
        cp_rank: rank within the context-parallel group.
        cp_size: context-parallel size.

    Returns:
        [length / cp_size] int64 on the CPU, ascending, in the order in which the rank holds them.
    """
    assert 0 <= cp_rank < cp_size, f"context-parallel rank {cp_rank} of {cp_size}"
    _check_length(length, cp_size)
    if cp_size == 1:
        return torch.arange(length)
    chunk = length // (2 * cp_size)
    starts = (cp_rank * chunk, (2 * cp_size - 1 - cp_rank) * chunk)
    return torch.cat([torch.arange(start, start + chunk) for start in starts])


def packed_zigzag_positions(cu_seqlens: Sequence[int], *, cp_rank: int, cp_size: int) -> Tensor:
    """Positions of a packed batch that one rank holds: its part of the first sequence, then of the second, and so on.

    Args:
        cu_seqlens: boundaries of the sequences in the whole batch, padding included: 0, then the end of each.
        cp_rank: rank within the context-parallel group.
        cp_size: context-parallel size.

    Returns:
        [cu_seqlens[-1] / cp_size] int64 positions in the whole batch, on the CPU.
    """
    positions = [torch.empty(0, dtype=torch.int64)]
    for start, length in zip(cu_seqlens, sequence_lengths(cu_seqlens), strict=False):
        positions.append(start + zigzag_positions(length, cp_rank=cp_rank, cp_size=cp_size))
    return torch.cat(positions)


def sequence_lengths(cu_seqlens: Sequence[int], *, cp_size: int = 1) -> list[int]:
    """Number of positions of each packed sequence that a rank holds.

    Args:
        cu_seqlens: boundaries of the sequences in the whole batch, padding included: 0, then the end of each.
        cp_size: context-parallel size; 1 gives the lengths of the whole sequences.

    Returns:
        One length per sequence, equal on all ranks.
    """
    assert len(cu_seqlens) > 0 and cu_seqlens[0] == 0, f"boundaries start with 0, not {list(cu_seqlens[:1])}"
    lengths = [end - start for start, end in pairwise(cu_seqlens)]
    assert all(length >= 0 for length in lengths), f"boundaries descend: {list(cu_seqlens)}"
    for length in lengths:
        _check_length(length, cp_size)
    return [length // cp_size for length in lengths]


def merge_zigzag(shards: Tensor) -> Tensor:
    """Rebuild the whole sequence from the parts of all ranks.

    Gradient: to the shards.

    Args:
        shards: [cp_size, length / cp_size, ...] in rank order, each in the order of `zigzag_positions`.

    Returns:
        [length, ...] in the order of the sequence.
    """
    cp_size, local_length = shards.shape[:2]
    if cp_size == 1:
        return shards[0]
    _check_length(cp_size * local_length, cp_size)
    early, late = shards.chunk(2, dim=1)
    return torch.cat((early.flatten(0, 1), late.flip(0).flatten(0, 1)))


def _check_length(length: int, cp_size: int) -> None:
    assert cp_size == 1 or length % (2 * cp_size) == 0, (
        f"a sequence of {length} positions cannot be cut into {2 * cp_size} equal chunks for context-parallel size "
        f"{cp_size}: pad it to a multiple of {2 * cp_size}"
    )

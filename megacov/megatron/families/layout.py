"""How the tensors of a Hugging Face model are split over tensor-parallel ranks.

Every layout splits whole tensors into equal parts, one per rank, and fuses a rank's parts into one Megatron parameter.
So a rank reads no more from a file than it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Fuse = Callable[[Sequence[Tensor]], Tensor]
Unfuse = Callable[[Tensor], Sequence[Tensor]]


def _only(tensors: Sequence[Tensor]) -> Tensor:
    (tensor,) = tensors
    return tensor


def _alone(tensor: Tensor) -> list[Tensor]:
    return [tensor]


@dataclass(frozen=True)
class Layout:
    """How some Hugging Face tensors are split and fused.

    dim: dimension along which each tensor is split; None if every rank holds it whole.
    fuse: a rank's parts, one of each tensor -> its parameter.
    unfuse: the parameter -> the parts.
    padded_size: size of dimension `dim` over all ranks, with zeros at the end; None for the tensor's own size.
    """

    dim: int | None
    fuse: Fuse = _only
    unfuse: Unfuse = _alone
    padded_size: int | None = None

    def part_range(self, shape: Sequence[int], rank: int, num_ranks: int) -> tuple[int, int]:
        """A rank's part of a tensor, without padding.

        Args:
            shape: shape of the whole tensor.
            rank: rank in the group.
            num_ranks: size of the group; divides the padded size.

        Returns:
            Start and end (exclusive) along `dim`; (0, 0) without a `dim`.
        """
        if self.dim is None:
            return 0, 0
        size = shape[self.dim]
        each = (self.padded_size or size) // num_ranks
        return min(rank * each, size), min((rank + 1) * each, size)

    def shard(self, parts: Sequence[Tensor], num_ranks: int) -> Tensor:
        """Build a rank's parameter.

        Args:
            parts: the `part_range` of each tensor.
            num_ranks: size of the group.

        Returns:
            The parameter, which may share memory with a single part.
        """
        if self.padded_size is not None:
            # Only the vocabulary is padded, and it is split by rows.
            each = self.padded_size // num_ranks
            parts = [
                part if part.shape[0] == each else nn.functional.pad(part, (0, 0, 0, each - part.shape[0]))
                for part in parts
            ]
        return self.fuse(parts)

    def merge(self, shards: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Rebuild the whole tensors.

        Args:
            shards: parameters in rank order.
            shapes: shapes of the whole tensors.

        Returns:
            One tensor per shape; they may share memory with the shards.
        """
        if self.dim is None:
            return list(self.unfuse(shards[0]))
        parts = [self.unfuse(shard) for shard in shards]
        whole = [torch.cat([part[i] for part in parts], self.dim) for i in range(len(shapes))]
        return [tensor.narrow(self.dim, 0, shape[self.dim]) for tensor, shape in zip(whole, shapes, strict=True)]


REPLICATED = Layout(None)
COLUMN = Layout(0)
ROW = Layout(1)
# On each rank, Megatron's fc1 holds [gate; up] for the rank's own columns, not a slice of the whole [gate; up].
GATE_UP = Layout(0, lambda parts: torch.cat(list(parts)), lambda shard: shard.chunk(2))


def vocab_layout(padded_size: int) -> Layout:
    """Rows split over ranks, with zero rows at the end up to padded_size rows in all."""
    return Layout(0, padded_size=padded_size)


def qkv_layout(head_dim: int, queries_per_group: int) -> Layout:
    """Queries, keys and values interleaved by key/value group, [g, (n/g + 2) * d, ...], with groups split over ranks.

    Args:
        head_dim: channels of a head, d.
        queries_per_group: query heads that share a key/value head, n/g.

    Returns:
        The layout, for both weights [.., h] and biases.
    """

    def fuse(parts: Sequence[Tensor]) -> Tensor:
        rest = parts[0].shape[1:]
        groups = parts[1].shape[0] // head_dim
        return torch.cat([part.reshape(groups, -1, head_dim, *rest) for part in parts], 1).reshape(-1, *rest)

    def unfuse(shard: Tensor) -> list[Tensor]:
        rest = shard.shape[1:]
        blocks = shard.reshape(-1, queries_per_group + 2, head_dim, *rest).split([queries_per_group, 1, 1], dim=1)
        return [block.reshape(-1, *rest) for block in blocks]

    return Layout(0, fuse, unfuse)

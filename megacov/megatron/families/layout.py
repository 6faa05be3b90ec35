"""How the tensors of a Hugging Face model lie over tensor-parallel ranks.

Every layout cuts whole tensors into equal parts, one a rank, and fuses a rank's parts into one Megatron parameter. So a
rank reads from a file no more than it keeps.
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
    """Where the parts of some Hugging Face tensors go.

    dim: along which each tensor is cut; None where every rank holds it whole.
    fuse: the parts on a rank, one of each tensor -> its parameter.
    unfuse: the parameter -> the parts.
    padded_size: of dimension `dim` over all ranks, filled up with zeros at the end; None for the tensor's own.
    """

    dim: int | None
    fuse: Fuse = _only
    unfuse: Unfuse = _alone
    padded_size: int | None = None

    def part_range(self, shape: Sequence[int], rank: int, num_ranks: int) -> tuple[int, int]:
        """Which part of a tensor is a rank's, padding left out.

        Args:
            shape: of the whole tensor.
            rank: in the group.
            num_ranks: in the group; divides the padded size.

        Returns:
            First index along `dim`, and the one after the last. (0, 0) without a `dim`.
        """
        if self.dim is None:
            return 0, 0
        size = shape[self.dim]
        each = (self.padded_size or size) // num_ranks
        return min(rank * each, size), min((rank + 1) * each, size)

    def shard(self, parts: Sequence[Tensor], num_ranks: int) -> Tensor:
        """A rank's parameter.

        Args:
            parts: of each tensor, `part_range` long.
            num_ranks: in the group.

        Returns:
            The parameter; may share memory with the only part.
        """
        if self.padded_size is not None:
            # Only the vocabulary is padded, and it lies in rows.
            each = self.padded_size // num_ranks
            parts = [
                part if part.shape[0] == each else nn.functional.pad(part, (0, 0, 0, each - part.shape[0]))
                for part in parts
            ]
        return self.fuse(parts)

    def merge(self, shards: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """The whole tensors.

        Args:
            shards: in rank order.
            shapes: of the whole tensors.

        Returns:
            One tensor a shape; they may share memory with the shards.
        """
        if self.dim is None:
            return list(self.unfuse(shards[0]))
        parts = [self.unfuse(shard) for shard in shards]
        whole = [torch.cat([part[i] for part in parts], self.dim) for i in range(len(shapes))]
        return [tensor.narrow(self.dim, 0, shape[self.dim]) for tensor, shape in zip(whole, shapes, strict=True)]


REPLICATED = Layout(None)
COLUMN = Layout(0)
ROW = Layout(1)
# Megatron's fc1 holds [gate; up] of its own columns on every rank, not a slice of the full [gate; up].
GATE_UP = Layout(0, lambda parts: torch.cat(list(parts)), lambda shard: shard.chunk(2))


def vocab_layout(padded_size: int) -> Layout:
    """Rows over ranks, padded with zero rows at the end.

    Args:
        padded_size: rows over all ranks.

    Returns:
        The layout.
    """
    return Layout(0, padded_size=padded_size)


def qkv_layout(head_dim: int, queries_per_group: int) -> Layout:
    """Queries, keys and values interleaved by key/value group: [g, (n/g + 2) * d, ...], groups over ranks.

    Args:
        head_dim: channels of a head.
        queries_per_group: query heads that share a key/value head.

    Returns:
        The layout, for weights [.., h] and biases alike.
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

"""A piece of weights on its way from a rank of the trainer to a rank of a rollout server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangular part of a tensor that one rank holds.

    name: name of the tensor on that rank: Megatron's on the trainer, SGLang's on a server.
    start: first index in each dimension.
    stop: index after the last one in each dimension.
    """

    name: str
    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Size in each dimension."""
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements that one rank sends to another, unchanged but for their dtype.

    sender: rank of the trainer's job.
    source: what it sends, with the shape of `target`; an expert's target has a dimension of 1 before that, its place
        among those that the server stacks.
    server: index of the server.
    receiver: tensor-parallel rank in that server.
    target: what it fills there.
    """

    sender: int
    source: Block
    server: int
    receiver: int
    target: Block

"""Buckets of whole shards of a server's ranks, and what each rank of the trainer adds to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple, Protocol

import torch

from megacov.plan.pieces import Piece
from megacov.weight_receiver.megacov_receiver import Part
from megacov.weight_sync.shard_rounds import Description, ShardPlan


class AssemblyPlan(ShardPlan, Protocol):
    """Who holds what, and who puts it together, such as `megacov.plan.reshard.ReshardPlan` of one server."""

    def assembler(self, piece: Piece) -> int:
        """Rank of the trainer that puts the target of a piece together."""
        ...


class Made(NamedTuple):
    """A tensor that a rank of the trainer puts together for a rank of every server; a list in JSON."""

    receiver: int
    name: str
    dtype: str
    shape: Sequence[int]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return prod(self.shape) * int(getattr(torch, self.dtype).itemsize)


Passed = list[tuple[int, list[tuple[int, Part]]]]
"""Rank of the other side, or this rank itself, and (receiver, part) in the order of their bytes."""


@dataclass
class Share:
    """What one rank of the trainer does in one bucket.

    makes: tensors that it puts together.
    gives: parts of its own for tensors that others put together, or it itself.
    takes: parts of other ranks for its tensors.
    """

    makes: list[Made] = field(default_factory=list)
    gives: Passed = field(default_factory=list)
    takes: Passed = field(default_factory=list)

    def as_json(self) -> Any:
        """Lists of lists."""
        return [self.makes, self.gives, self.takes]

    @classmethod
    def from_json(cls, content: Any) -> Share:
        """From what `as_json` gives."""
        makes, *passed = content
        gives, takes = (
            [(peer, [(receiver, Part(*part)) for receiver, part in parts]) for peer, parts in each] for each in passed
        )
        return cls([Made(*each) for each in makes], gives, takes)


Bucket = dict[int, Share]
"""Rank of the trainer -> its share; ranks that do nothing are left out."""


def divide(plan: AssemblyPlan, layouts: Mapping[int, Description], *, max_bytes: int) -> list[Bucket]:
    """Divide all parameters of a server into buckets.

    A bucket has the same parameters for all ranks of the server, as a request has, and for each of these ranks one
    rank of the trainer that puts them together. Each parameter is whole in one bucket.

    Args:
        plan: plan for one server.
        layouts: layout of each rank of the server; every parameter has pieces in the plan, on some rank.
        max_bytes: size of a bucket, all ranks together, unless one parameter alone is larger. [bytes]

    Returns:
        The buckets. All parameters are in them, also those of which a rank has padded rows alone.
    """
    pieces: defaultdict[str, list[Piece]] = defaultdict(list)
    for piece in plan.pieces():
        pieces[piece.target.name].append(piece)
    assemblers = {name: _assemblers(plan, pieces[name], layouts) for name in pieces}
    return [
        _bucket(names, pieces, layouts, assemblers[names[0]])
        for names in _groups(assemblers, layouts, max_bytes=max_bytes)
    ]


def _assemblers(plan: AssemblyPlan, pieces: Sequence[Piece], layouts: Mapping[int, object]) -> tuple[int, ...]:
    """Who puts a parameter together, by receiver. Padded rows alone need nobody who holds others."""
    found = {piece.receiver: plan.assembler(piece) for piece in pieces}
    return tuple(found.get(receiver, next(iter(found.values()))) for receiver in sorted(layouts))


def _groups(
    assemblers: Mapping[str, tuple[int, ...]], layouts: Mapping[int, Description], *, max_bytes: int
) -> Iterator[list[str]]:
    """Names of each bucket."""
    pending: list[str] = []
    num_bytes = 0
    for name in sorted(assemblers, key=lambda name: assemblers[name]):  # otherwise in the order of the model
        size = sum(Made(receiver, name, *layout[name]).num_bytes for receiver, layout in layouts.items())
        if pending and (num_bytes + size > max_bytes or assemblers[name] != assemblers[pending[0]]):
            yield pending
            pending, num_bytes = [], 0
        pending.append(name)
        num_bytes += size
    if pending:
        yield pending


def _bucket(
    names: Iterable[str],
    pieces: Mapping[str, Sequence[Piece]],
    layouts: Mapping[int, Description],
    assemblers: Sequence[int],
) -> Bucket:
    bucket: defaultdict[int, Share] = defaultdict(Share)
    passed: defaultdict[tuple[int, int], list[tuple[int, Part]]] = defaultdict(list)
    for name in names:
        for receiver, assembler in zip(sorted(layouts), assemblers, strict=True):
            bucket[assembler].makes.append(Made(receiver, name, *layouts[receiver][name]))
        for piece in pieces[name]:
            source, target = piece.source, piece.target
            dtype, shape = layouts[piece.receiver][name]
            part = Part(source.name, source.start, source.stop, name, target.start, target.stop, dtype, shape)
            passed[piece.sender, assemblers[piece.receiver]].append((piece.receiver, part))
    for (sender, assembler), parts in passed.items():
        # Larger elements first, so that all stand at multiples of their size.
        parts.sort(key=lambda each: -each[1].itemsize)
        bucket[sender].gives.append((assembler, parts))
        if sender != assembler:
            bucket[assembler].takes.append((sender, parts))
    return dict(bucket)

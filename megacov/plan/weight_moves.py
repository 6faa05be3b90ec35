"""What each place of the trainer's model has to send to the ranks of one server, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod

from megacov.plan.layout import Layout
from megacov.plan.model_sizes import ModelSizes
from megacov.plan.pieces import Block
from megacov.plan.weight_parts import Part, ServerLayout, Span, weight_parts


@dataclass(frozen=True, order=True)
class Place:
    """A place of the trainer's model, of which data-parallel replicas exist.

    stage: pipeline stage.
    is_expert: whether `holder` is an expert-parallel rank, not a tensor-parallel one.
    """

    stage: int
    is_expert: bool
    holder: int


@dataclass(frozen=True, slots=True)
class Move:
    """Rows of a parameter that a place sends to the same rank of every server.

    receiver: that rank.
    source: where the place has them.
    target: where the receiver wants them.
    """

    receiver: int
    source: Block
    target: Block

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.source.shape)

    def rows(self, first: int, last: int) -> tuple[Block, Block]:
        """Part of the move.

        Args:
            first: first row of the source, counted within the move.
            last: row after the last one.

        Returns:
            Source and target of these rows.
        """
        source, target = self.source, self.target
        if (first, last) == (0, source.shape[0]):
            return source, target
        return _cut(source, 0, first, last), _cut(target, len(target.start) - len(source.start), first, last)


def _cut(block: Block, dim: int, first: int, last: int) -> Block:
    start, stop = list(block.start), list(block.stop)
    start[dim], stop[dim] = block.start[dim] + first, block.start[dim] + last
    return Block(block.name, tuple(start), tuple(stop))


def weight_moves(
    sizes: ModelSizes, trainer: Layout, servers: ServerLayout, *, vocab_divisible_by: int
) -> Iterator[tuple[Place, Move]]:
    """Yield every move of a push to one server; together they fill all that its ranks hold, but for padded rows.

    Args:
        sizes: sizes of the model.
        trainer: layout that divides heads, layers and experts evenly.
        servers: the servers.
        vocab_divisible_by: number of which the rows of the trainer's vocabulary shards are a multiple.

    Yields:
        (place, move) in the order of the model.

    Raises:
        ConfigError: SGLang would not start servers of this layout.
    """
    parts = weight_parts(sizes, trainer, servers, vocab_divisible_by=vocab_divisible_by)
    for _, of_parameter in groupby(parts, key=lambda part: (part.source, part.target)):
        yield from _merged(list(of_parameter), trainer, servers)


def _merged(parts: list[Part], trainer: Layout, servers: ServerLayout) -> Iterator[tuple[Place, Move]]:
    """The moves of a parameter; neighbouring rows on both sides go as one."""
    open_moves: dict[tuple[Place, int], Move] = {}
    for part in parts:
        for place, move in _moves(part, trainer, servers):
            key = (place, move.receiver)
            last = open_moves.get(key)
            if last is not None and not part.by_columns and _follows(last, move):
                open_moves[key] = Move(move.receiver, _join(last.source, move.source), _join(last.target, move.target))
                continue
            if last is not None:
                yield place, last
            open_moves[key] = move
    for (place, _), move in open_moves.items():
        yield place, move


def _follows(last: Move, move: Move) -> bool:
    dim = len(move.target.start) - len(move.source.start)
    return last.source.stop[0] == move.source.start[0] and last.target.stop[dim] == move.target.start[dim]


def _join(first: Block, second: Block) -> Block:
    return replace(first, stop=second.stop)


def _moves(part: Part, trainer: Layout, servers: ServerLayout) -> Iterator[tuple[Place, Move]]:
    """Intersections of what the trainer's places hold and what a server's ranks need."""
    for target in part.targets:
        assert target.holder is not None
        for source in part.sources:
            start, stop = max(source.start, target.start), min(source.stop, target.stop)
            if start >= stop:
                continue
            # If all have it, that one sends which also sends the neighbouring parts of matrices.
            holder = target.holder * trainer.tensor // servers.tensor if source.holder is None else source.holder
            move = Move(
                target.holder,
                _block(part, part.source, source, start, stop),
                _block(part, part.target, target, start, stop, slot=part.slot),
            )
            yield Place(part.stage, part.is_expert, holder), move


def _block(part: Part, name: str, span: Span, start: int, stop: int, *, slot: int | None = None) -> Block:
    """Where a rank has the rows (or columns) from start to stop of the whole tensor."""
    ranges = [(span.at + start - span.start, span.at + stop - span.start)]
    if part.width is not None:
        ranges.insert(0 if part.by_columns else 1, (0, part.width))
    if slot is not None:
        ranges.insert(0, (slot, slot + 1))
    return Block(name, tuple(first for first, _ in ranges), tuple(last for _, last in ranges))

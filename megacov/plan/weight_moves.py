"""What each place of the trainer's model has to send to the ranks of one server, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod

from megacov.plan.layout import Layout
from megacov.plan.model_sizes import ModelSizes
from megacov.plan.pieces import Block
from megacov.plan.weight_parts import Part, ServerLayout, Span, WeightTable, check_servers


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
    def row_size(self) -> int:
        """Elements of a row."""
        return prod(self.source.shape[1:])

    def within(self, source: str, target: str) -> Move:
        """The same move of parameters whose names begin with these words."""
        first, second = self.source, self.target
        return Move(
            self.receiver,
            Block(source + first.name, first.start, first.stop),
            Block(target + second.name, second.start, second.stop),
        )

    def rows(self, first: int, last: int) -> tuple[Block, Block]:
        """Part of the move.

        Args:
            first: first row of the source, counted within the move.
            last: row after the last one.

        Returns:
            Source and target of these rows.
        """
        slots = len(self.target.start) - len(self.source.start)
        return _cut(self.source, 0, first, last), _cut(self.target, slots, first, last)


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
    check_servers(sizes, servers)
    table = WeightTable(sizes, trainer, servers, vocab_divisible_by)
    yield from _moves(table.before_layers(), trainer, servers)
    of_a_layer = list(_moves(table.layer(), trainer, servers))
    run = sizes.num_layers // (trainer.pipeline * trainer.virtual_pipeline)
    for layer in range(sizes.num_layers):
        stage = layer // run % trainer.pipeline
        for place, move in of_a_layer:
            yield replace(place, stage=stage), move.within(f"decoder.layers.{layer}.", f"model.layers.{layer}.")
    for place, move in _moves(table.after_layers(), trainer, servers):
        yield replace(place, stage=trainer.pipeline - 1), move


def _moves(parts: Iterable[Part], trainer: Layout, servers: ServerLayout) -> Iterator[tuple[Place, Move]]:
    """The moves of some parameters, as if all were on the first stage."""
    for _, of_parameter in groupby(parts, key=lambda part: (part.source, part.target)):
        yield from _merged(of_parameter, trainer, servers)


def _merged(parts: Iterable[Part], trainer: Layout, servers: ServerLayout) -> Iterator[tuple[Place, Move]]:
    """The moves of a parameter; neighbouring rows on both sides go as one."""
    open_moves: dict[tuple[Place, int], Move] = {}
    for part in parts:
        for place, move in _intersections(part, trainer, servers):
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


def _intersections(part: Part, trainer: Layout, servers: ServerLayout) -> Iterator[tuple[Place, Move]]:
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
            yield Place(0, part.is_expert, holder), move


def _block(part: Part, name: str, span: Span, start: int, stop: int, *, slot: int | None = None) -> Block:
    """Where a rank has the rows (or columns) from start to stop of the whole tensor."""
    ranges = [(span.at + start - span.start, span.at + stop - span.start)]
    if part.width is not None:
        ranges.insert(0 if part.by_columns else 1, (0, part.width))
    if slot is not None:
        ranges.insert(0, (slot, slot + 1))
    return Block(name, tuple(first for first, _ in ranges), tuple(last for _, last in ranges))

"""Plans how weights go from the trainer's ranks to those of rollout servers: every element once, and nothing gathered.

A *line* is everything that one place of the trainer's model has to send: one pipeline stage, and one tensor-parallel
rank for what is outside of experts, or one expert-parallel rank for experts. Its moves stand in order of the receiving
rank, once for each server. As many equal cuts as there are data-parallel replicas of the place divide it among them, so
that all send the same number of bytes but for a row. A rank's share, and what a receiver gets, are intervals of lines:
both are found without making the whole plan.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod

from megacov.plan.layout import Layout
from megacov.plan.model_sizes import ModelSizes
from megacov.plan.pieces import Block, Piece
from megacov.plan.weight_moves import Move, Place, weight_moves
from megacov.plan.weight_parts import EMBEDDING, HEAD, ServerLayout, server_vocab_rows


@dataclass(frozen=True)
class _Line:
    """The moves of a place to one server, in order of receivers; all servers get the same, one after another."""

    place: Place
    moves: list[Move]
    servers: int
    replicas: int

    @cached_property
    def offsets(self) -> list[int]:
        """First element of each move in the part of the first server, and the end of the last."""
        return list(accumulate((prod(move.source.shape) for move in self.moves), initial=0))

    @property
    def width(self) -> int:
        """Elements for one server."""
        return self.offsets[-1]

    @cached_property
    def cuts(self) -> list[int]:
        """First element of each replica's share, and the end of the last."""
        whole = self.width * self.servers
        return [*(self._whole_rows(replica * whole // self.replicas) for replica in range(self.replicas)), whole]

    def _whole_rows(self, element: int) -> int:
        """The first element of a row."""
        within = element % self.width
        index = bisect_right(self.offsets, within) - 1
        return element - (within - self.offsets[index]) % self.moves[index].row_size

    @cached_property
    def receivers(self) -> dict[int, tuple[int, int]]:
        """Interval of each receiving rank in the part of the first server."""
        found: dict[int, tuple[int, int]] = {}
        for move, (start, stop) in zip(self.moves, pairwise(self.offsets), strict=True):
            found[move.receiver] = (found.get(move.receiver, (start, stop))[0], stop)
        return found

    def shares(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the replicas that send an interval: (replica, start, stop)."""
        while start < stop:
            replica = bisect_right(self.cuts, start) - 1
            end = min(stop, self.cuts[replica + 1])
            yield replica, start, end
            start = end

    def between(self, start: int, stop: int) -> Iterator[tuple[int, int, Block, Block]]:
        """Yield what an interval of whole rows is made of: (server, receiver, source, target)."""
        if start == stop:
            return
        server, within = divmod(start, self.width)
        index = bisect_right(self.offsets, within) - 1
        while start < stop:
            move, before = self.moves[index], server * self.width
            begin, end = before + self.offsets[index], before + self.offsets[index + 1]
            if begin == start and end <= stop:
                yield server, move.receiver, move.source, move.target
            else:
                rows = [(element - begin) // move.row_size for element in (start, min(stop, end))]
                yield server, move.receiver, *move.rows(*rows)
            start, index = end, index + 1
            if index == len(self.moves):
                server, index = server + 1, 0


@dataclass(frozen=True)
class ReshardPlan:
    """Who sends what to whom. Made by `plan_reshard`."""

    trainer: Layout
    servers: ServerLayout
    lines: tuple[_Line, ...]
    padding: tuple[tuple[Block, ...], ...]

    def pieces(self) -> Iterator[Piece]:
        """Yield all pieces of all ranks."""
        for line in self.lines:
            for replica in range(line.replicas):
                yield from self._pieces(line, replica, line.cuts[replica], line.cuts[replica + 1])

    def sent_by(self, rank: int) -> Iterator[Piece]:
        """Yield what a rank of the trainer sends.

        Args:
            rank: rank in the trainer's job.

        Yields:
            Its pieces; those to one receiver in the order in which `received_by` has them.
        """
        for line in self.lines:
            replica = self._replica(line.place, rank)
            if replica is not None:
                yield from self._pieces(line, replica, line.cuts[replica], line.cuts[replica + 1])

    def received_by(self, server: int, receiver: int) -> Iterator[Piece]:
        """Yield what a rank of a server receives.

        Args:
            server: index of the server.
            receiver: tensor-parallel rank in that server.

        Yields:
            Its pieces; those of one sender in the order in which `sent_by` has them.
        """
        for line in self.lines:
            start, stop = line.receivers.get(receiver, (0, 0))
            before = server * line.width
            for replica, begin, end in line.shares(before + start, before + stop):
                yield from self._pieces(line, replica, begin, end)

    def of_one_replica(self) -> ReshardPlan:
        """The plan in which the first data-parallel replica of each place sends everything."""
        return replace(self, lines=tuple(replace(line, replicas=1) for line in self.lines))

    def assembler(self, piece: Piece) -> int:
        """Rank of the trainer that holds what is next to a piece in the receiver's parameter.

        Args:
            piece: one of the plan's pieces.

        Returns:
            The first of the ranks of the piece's pipeline stage whose tensor-parallel shards the receiver's begins in.
        """
        per_stage, tensor = self.trainer.ranks_per_stage, self.trainer.tensor
        return piece.sender // per_stage * per_stage + piece.receiver * tensor // self.servers.tensor

    def target_shapes(self, receiver: int) -> dict[str, tuple[int, ...]]:
        """Shapes of a server's rank.

        Args:
            receiver: tensor-parallel rank in any server.

        Returns:
            Shape by SGLang's name, padded rows included.
        """
        blocks = [move.target for line in self.lines for move in line.moves if move.receiver == receiver]
        shapes: dict[str, tuple[int, ...]] = {}
        for block in (*blocks, *self.padding[receiver]):
            shapes[block.name] = tuple(map(max, block.stop, shapes.get(block.name, block.stop)))
        return shapes

    def pair_sizes(self) -> dict[tuple[int, int, int], int]:
        """Number of elements of all pieces by (sender, server, receiver), added up without making the pieces."""
        sizes: dict[tuple[int, int, int], int] = defaultdict(int)
        for line in self.lines:
            for server in range(self.servers.number):
                before = server * line.width
                for receiver, (start, stop) in line.receivers.items():
                    for replica, begin, end in line.shares(before + start, before + stop):
                        sizes[self.sender(line.place, replica), server, receiver] += end - begin
        return sizes

    def _pieces(self, line: _Line, replica: int, start: int, stop: int) -> Iterator[Piece]:
        sender = self.sender(line.place, replica)
        for server, receiver, source, target in line.between(start, stop):
            yield Piece(sender, source, server, receiver, target)

    def sender(self, place: Place, replica: int) -> int:
        """Rank of a replica of a place, in Megatron's order of ranks.

        Args:
            place: place of the trainer's model.
            replica: index of the replica.

        Returns:
            The rank in the trainer's job.
        """
        each = self.trainer.expert if place.is_expert else self.trainer.tensor
        return place.stage * self.trainer.ranks_per_stage + replica * each + place.holder

    def _replica(self, place: Place, rank: int) -> int | None:
        """Which replica of a place a rank is; None if it is none."""
        stage, in_stage = divmod(rank, self.trainer.ranks_per_stage)
        replica, holder = divmod(in_stage, self.trainer.expert if place.is_expert else self.trainer.tensor)
        return replica if (stage, holder) == (place.stage, place.holder) else None


def plan_reshard(sizes: ModelSizes, trainer: Layout, servers: ServerLayout, *, vocab_divisible_by: int) -> ReshardPlan:
    """Plan a push of all weights.

    Args:
        sizes: sizes of the model.
        trainer: layout that divides heads, layers and experts evenly.
        servers: the servers.
        vocab_divisible_by: `model.vocab_divisible_by`.

    Returns:
        The plan, the same on every rank that makes it.

    Raises:
        ConfigError: SGLang would not start servers of this layout.
    """
    moves: dict[Place, list[Move]] = {}
    for place, move in weight_moves(sizes, trainer, servers, vocab_divisible_by=vocab_divisible_by):
        moves.setdefault(place, []).append(move)
    lines = tuple(
        _Line(
            place,
            sorted(moves[place], key=lambda move: move.receiver),
            servers.number,
            trainer.expert_optimizer_shards if place.is_expert else trainer.optimizer_shards,
        )
        for place in sorted(moves)
    )
    return ReshardPlan(trainer, servers, lines, _padding(lines, sizes, servers))


def _padding(lines: Iterable[_Line], sizes: ModelSizes, servers: ServerLayout) -> tuple[tuple[Block, ...], ...]:
    """Rows of the vocabulary that only a server has, by receiver: nobody sends them."""
    targets = {move.target.name for line in lines for move in line.moves}
    names = [name for name in (EMBEDDING, HEAD) if name in targets]
    rows, h = server_vocab_rows(sizes.vocab_size, servers.tensor), sizes.hidden_size
    used = [min(max(sizes.vocab_size - receiver * rows, 0), rows) for receiver in range(servers.tensor)]
    return tuple(tuple(Block(name, (count, 0), (rows, h)) for name in names if count < rows) for count in used)

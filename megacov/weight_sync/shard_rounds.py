"""Rounds in which shards go from the trainer's ranks to those of servers, with a bounded staging area on each rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from megacov.errors import WeightSyncError
from megacov.plan.pieces import Block, Piece
from megacov.weight_receiver.megacov_receiver import ALIGNMENT_BYTES, Message, Part

Description = Mapping[str, tuple[str, Sequence[int]]]
"""Name of a parameter of a server's rank -> its dtype, such as "bfloat16", and its shape."""

Rounds = list[list[Message]]


class ShardPlan(Protocol):
    """Who sends what to whom, such as `megacov.plan.reshard.ReshardPlan`."""

    def pieces(self) -> Iterator[Piece]:
        """Yield all pieces of all ranks."""
        ...

    def target_shapes(self, receiver: int) -> Mapping[str, tuple[int, ...]]:
        """Shape of every parameter of a rank of any server."""
        ...


def check_layout(
    plan: ShardPlan, receiver: int, layout: Description, *, server: str, transport: str, instead: str
) -> None:
    """Refuse a server whose parameters are not those that the plan fills, before anything is sent.

    Args:
        plan: the plan.
        receiver: tensor-parallel rank in the server.
        layout: what that rank has.
        server: address, for the message.
        transport: name of the transport, for the message.
        instead: name of another one, which leaves names and shapes to the server.

    Raises:
        WeightSyncError: names a parameter that differs.
    """
    planned = {name: tuple(shape) for name, shape in plan.target_shapes(receiver).items()}
    found = {name: tuple(shape) for name, (_, shape) in layout.items()}
    for name in sorted(planned.keys() | found.keys()):
        if planned.get(name) != found.get(name):
            has, gets = found.get(name, "no such parameter"), planned.get(name, "nothing for it")
            raise WeightSyncError(
                f"weight_sync.transport is {transport}, rank {receiver} of {server} has {has} as {name}, and the plan "
                f"has {gets}: set weight_sync.transport={instead}, which leaves names and shapes to the server."
            )


def schedule(
    pieces: Iterable[Piece],
    layouts: Mapping[tuple[int, int], Description],
    *,
    group_rank: Callable[[int, int], int],
    max_bytes: int,
) -> dict[int, Rounds]:
    """Distribute pieces over rounds, in each of which no rank sends or takes more than a buffer holds.

    Within a round, all bytes from one rank to another are one message. Senders take turns at a receiver, beginning with
    another one at each, so that few wait for each other.

    Args:
        pieces: pieces of all ranks.
        layouts: layout of each (server, receiver).
        group_rank: from (server, receiver) to its rank in the group; a sender's is its own.
        max_bytes: size of a buffer, gaps between messages included; a single row may be larger. [bytes]

    Returns:
        Rank in the group -> messages of each of its rounds; both ends of a message list the same parts.
    """
    max_bytes -= max_bytes % ALIGNMENT_BYTES
    counts: defaultdict[tuple[int, int], int] = defaultdict(int)
    queue = []
    for piece in pieces:
        to = group_rank(piece.server, piece.receiver)
        for part, num_bytes in _parts(piece, layouts[piece.server, piece.receiver], max_bytes):
            count = counts[piece.sender, to] = counts[piece.sender, to] + 1
            queue.append((count, piece.sender, to, part, num_bytes))
    num_senders = 1 + max((each[1] for each in queue), default=0)
    queue.sort(key=lambda each: (each[0], (each[1] - each[2]) % num_senders))
    # Of each rank: the round that it fills now, and the bytes in its buffer; of each pair of ranks: the round of their
    # last message, and its bytes.
    filled: defaultdict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
    lengths: defaultdict[tuple[int, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    messages: defaultdict[int, dict[tuple[int, int], list[Part]]] = defaultdict(dict)
    for _, sender, to, part, num_bytes in queue:
        places = (filled[sender], filled[to], lengths[sender, to])
        number = max(filled[sender][0], filled[to][0])
        sent, taken, length = (amount if at == number else 0 for at, amount in places)
        more = _in_buffer(length + num_bytes) - _in_buffer(length)
        if max(sent, taken) > 0 and max(sent, taken) + more > max_bytes:
            number, sent, taken, length, more = number + 1, 0, 0, 0, _in_buffer(num_bytes)
        filled[sender], filled[to] = (number, sent + more), (number, taken + more)
        lengths[sender, to] = (number, length + num_bytes)
        messages[number].setdefault((sender, to), []).append(part)
    return _by_rank(messages)


def _by_rank(messages: Mapping[int, Mapping[tuple[int, int], list[Part]]]) -> dict[int, Rounds]:
    found: defaultdict[int, Rounds] = defaultdict(lambda: [[] for _ in messages])
    for number, round_ in messages.items():
        for (sender, to), parts in round_.items():
            # Larger elements first, so that all stand at multiples of their size.
            ordered = sorted(parts, key=lambda part: -part.itemsize)
            found[sender][number].append((to, ordered))
            found[to][number].append((sender, ordered))
    return dict(found)


def _in_buffer(num_bytes: int) -> int:
    """Bytes that a message takes in a buffer."""
    return num_bytes + -num_bytes % ALIGNMENT_BYTES


def _parts(piece: Piece, layout: Description, max_bytes: int) -> Iterator[tuple[Part, int]]:
    """A piece in parts that fit into a buffer, and the bytes of each. Most pieces are one part."""
    dtype, shape = layout[piece.target.name]
    source, target = piece.source, piece.target
    whole = Part(source.name, source.start, source.stop, target.name, target.start, target.stop, dtype, shape)
    num_bytes = whole.num_bytes
    if num_bytes <= max_bytes:
        yield whole, num_bytes
        return
    rows = _rows(target)
    at_once = max(1, rows * max_bytes // num_bytes)
    for first in range(0, rows, at_once):
        one, other = (_cut(block, first, min(first + at_once, rows)) for block in (source, target))
        part = whole._replace(source_start=one.start, source_stop=one.stop, start=other.start, stop=other.stop)
        yield part, part.num_bytes


def _row_dimension(block: Block) -> int:
    """The first dimension with more than one index: of experts, a source has none for the expert."""
    return next((dim for dim, size in enumerate(block.shape) if size > 1), 0)


def _rows(block: Block) -> int:
    return block.shape[_row_dimension(block)]


def _cut(block: Block, first: int, last: int) -> Block:
    dim = _row_dimension(block)
    start, stop = list(block.start), list(block.stop)
    start[dim], stop[dim] = block.start[dim] + first, block.start[dim] + last
    return replace(block, start=tuple(start), stop=tuple(stop))

"""A rank of the trainer that sends its shards to the ranks of servers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from megacov.weight_receiver.megacov_receiver import (
    Board,
    Channel,
    Message,
    Part,
    Turn,
    added_up,
    block_of,
    board_of,
    checksum,
    read_rounds,
)
from megacov.weight_sync.process_group import join_group, leave, meet_at
from megacov.weight_sync.shard_assembly import Assembler, Payloads

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

Command = Mapping[str, Any]
"""What rank 0 wants all ranks of the trainer to do, in JSON: "join", "send", "assemble" or "release", with the
arguments of that method."""


@dataclass(frozen=True)
class OwnShards:
    """Parameters of this rank, and on rank 0 a way to lead the other ranks of the trainer.

    tensors: Megatron's name -> this rank's part of the parameter.
    num_ranks: ranks of the trainer, all of which send.
    lead: gives a command to all other ranks, which `ShardSender.obey` it; a collective on the main thread.
    """

    tensors: Mapping[str, Tensor]
    num_ranks: int
    lead: Callable[[Command], object]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over pairs of name and tensor."""
        return iter(self.tensors.items())


class ShardSender:
    """This rank of the trainer in the group of all senders and receivers, which lasts from push to push.

    Errors of torch are reported on the group's board, where rank 0 reads them, and never raised: the ranks of a job
    must stay in step.
    """

    def __init__(self) -> None:
        """Join nothing yet."""
        self._group: dist.ProcessGroup | None = None
        self._backend = ""
        self._own: dist.ProcessGroup | None = None
        self._rounds: list[list[Message]] | None = None
        self._assembler: Assembler | None = None

    @property
    def board(self) -> Board:
        """Board of the group."""
        assert self._group is not None
        return board_of(self._group)

    def obey(self, command: Command, tensors: Mapping[str, Tensor], *, rank: int) -> None:
        """Do what rank 0 wants, on another rank.

        Args:
            command: rank 0's command.
            tensors: parameters of this rank by Megatron's name.
            rank: this rank of the trainer.
        """
        arguments = {name: value for name, value in command.items() if name != "do"}
        if command["do"] == "send":
            self.send(tensors, **arguments)
            return
        if command["do"] == "assemble":
            with suppress(RuntimeError):  # it is on the board, where rank 0 reads it
                self.assemble(tensors, **arguments)
            return
        if command["do"] == "release":
            self.release()
            return
        assert command["do"] == "join"
        host, port = arguments.pop("host"), arguments.pop("port")
        with suppress(RuntimeError):  # rank 0, which waits for all ranks, fails too
            limits = {name: arguments[name] for name in ("world_size", "timeout_s")}
            self.join(meet_at(host, port, **limits), rank=rank, **arguments)

    def join(
        self,
        store: TCPStore,
        *,
        rank: int,
        name: str,
        backend: str,
        world_size: int,
        timeout_s: float,
        num_own: int | None = None,
    ) -> None:
        """Join a new group, and leave the old one; returns when all ranks have joined.

        Args:
            store: where they meet.
            rank: this rank of the trainer, and so of the group.
            name: name of the group.
            backend: "gloo" or "nccl".
            world_size: all ranks of the trainer, and all ranks of all servers. [ranks]
            timeout_s: deadline of the group. [s]
            num_own: ranks of the trainer, if these also form a group of their own over NCCL. [ranks]

        Raises:
            RuntimeError: not all ranks have joined (from torch).
        """
        self.leave()
        self._backend = backend
        self._group = join_group(
            store, name=name, backend=backend, rank=rank, world_size=world_size, timeout_s=timeout_s
        )
        if num_own is not None:
            late_s = 2.0 * timeout_s  # NCCL's watchdog kills a process whose message is late
            self._own = join_group(
                store, name=f"{name}-own", backend="nccl", rank=rank, world_size=num_own, timeout_s=late_s
            )

    def send(self, tensors: Mapping[str, Tensor], *, number: int, with_sums: bool, timeout_s: float) -> None:
        """Send what the plan on the board has for this rank, once all ranks agree.

        Args:
            tensors: parameters of this rank by Megatron's name.
            number: number of the hand-over.
            with_sums: whether to report checksums of what was sent.
            timeout_s: deadline of the hand-over. [s]
        """
        if self._group is None:
            return  # it did not form, as rank 0 knows
        group = self._group
        turn = Turn(group, number=number, timeout_s=timeout_s)
        try:
            turn.end(**self._send(turn, tensors, with_sums=with_sums))
        except (RuntimeError, ValueError) as error:  # of torch; ValueError if rank 0 has left the group meanwhile
            with suppress(RuntimeError):
                turn.fail(error, str(error))
            if self._group is group:
                self.leave()  # so that no other rank waits for this one

    def assemble(
        self, tensors: Mapping[str, Tensor], *, number: int, bucket: int, with_sums: bool, timeout_s: float
    ) -> Payloads:
        """Put a bucket of servers' shards together with the other ranks; keep it until the next, or `release`.

        Args:
            tensors: parameters of this rank by Megatron's name.
            number: number of the hand-over.
            bucket: number of the bucket, from 0.
            with_sums: whether to report checksums of what was put together, with the last bucket.
            timeout_s: deadline of the bucket. [s]

        Returns:
            Payloads of the requests, by rank of a server; on rank 0 those of all ranks.

        Raises:
            RuntimeError: a rank is lost or late (from torch), or out of memory; the board has it too.
        """
        if self._group is None:
            raise RuntimeError("this rank of the trainer is in no group")
        group, turn = self._group, Turn(self._group, number=number, timeout_s=timeout_s)
        try:
            if self._assembler is None:
                plan = self.board.read(f"plan/{group.rank()}", timeout_s=turn.left_s)
                self._assembler = Assembler(plan, group=group, own=self._own)
            payloads, sums = self._assembler.assemble(tensors, bucket, with_sums=with_sums, timeout_s=turn.left_s)
            if sums is not None:
                turn.end(sums=sums)
        except (RuntimeError, ValueError) as error:  # as in `send`
            with suppress(RuntimeError):
                turn.fail(error, str(error))
            if self._group is group:
                self.leave()
            raise RuntimeError(str(error)) from error
        return payloads

    def release(self) -> None:
        """Free what `assemble` keeps, once all servers have taken it."""
        if self._assembler is not None:
            self._assembler.release()

    def leave(self) -> None:
        """Leave the group, if there is one; other ranks that wait for this one then fail."""
        self._rounds, self._assembler = None, None
        own, self._own = self._own, None
        if own is not None:
            with suppress(RuntimeError):
                leave(own, backend="nccl")
        group, self._group = self._group, None
        if group is not None:
            with suppress(RuntimeError):
                leave(group, backend=self._backend)

    @torch.no_grad()
    def _send(self, turn: Turn, tensors: Mapping[str, Tensor], *, with_sums: bool) -> dict[str, object]:
        assert self._group is not None
        if self._rounds is None:
            self._rounds = read_rounds(self.board.read(f"plan/{self._group.rank()}", timeout_s=turn.left_s))
        sums: defaultdict[int, defaultdict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))

        def fill(peer: int, part: Part, values: Tensor) -> None:
            source = block_of(tensors[part.source], part.source_start, part.source_stop)
            values.view(source.shape).copy_(source)  # experts are stacked on a server alone
            if with_sums:
                sums[peer][part.target].append(checksum(values, part.start, part.shape))

        channel = Channel(self._group, self._rounds, timeout_s=turn.left_s)  # before any rank writes, as on a server
        if turn.agree():
            channel.open()
            _send_rounds(channel, len(self._rounds), fill)
        return {"sums": {peer: added_up(each) for peer, each in sums.items()}}


def _send_rounds(channel: Channel, num_rounds: int, fill: Callable[[int, Part, Tensor], None]) -> None:
    """Send all messages: the next round is packed while one is under way."""
    under_way: list[list[dist.Work]] = []
    for number in range(num_rounds):
        if number >= 2:
            channel.wait(under_way[number - 2])  # its buffer is filled next
        for peer, part, values in channel.parts(number):
            fill(peer, part, values)
        under_way.append(channel.post(number, dist.isend))
    for works in under_way[-2:]:
        channel.wait(works)

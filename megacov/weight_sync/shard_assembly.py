"""A rank of the trainer puts whole shards of servers together, from its own parameters and those of other ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from megacov.weight_receiver.megacov_receiver import Channel, Part, added_up, block_of, checksum
from megacov.weight_sync.shard_buckets import Bucket, Share
from megacov.weight_sync.tensors import serialize

if TYPE_CHECKING:
    from torch import Tensor

Shards = dict[int, dict[str, "Tensor"]]
"""Rank of a server -> SGLang's name -> the whole of what that rank holds."""

Payloads = dict[int, list[str]]
"""Rank of a server -> payload of its place in a request, one for each server, or one for all."""

Sums = dict[int, dict[str, int]]
"""Rank of the group, one of a server -> checksum of each of its parameters."""


class Assembler:
    """This rank's part in all buckets of a plan."""

    def __init__(self, plan: Mapping[str, Any], *, group: dist.ProcessGroup, own: dist.ProcessGroup | None) -> None:
        """Hold nothing yet.

        Args:
            plan: what `plan_of` has made for this rank.
            group: all ranks of the trainer, and those of the servers behind them, over gloo.
            own: the ranks of the trainer alone, over NCCL; None if their parameters are on the CPU.
        """
        self._shares = [Share.from_json(each) for each in plan["shares"]]
        self._senders, self._first_ranks = plan["senders"], plan["first_ranks"]
        self._group, self._pieces_group = group, own or group
        is_gpu = own is not None
        self._device = torch.device("cuda", torch.cuda.current_device()) if is_gpu else torch.device("cpu")
        # A handle of GPU memory is counted as one reader's, so each server needs its own.
        self._copies = len(self._first_ranks) if is_gpu else 1
        self._held: Shards = {}
        self._sums: Sums = {}

    def assemble(
        self, tensors: Mapping[str, Tensor], bucket: int, *, with_sums: bool, timeout_s: float
    ) -> tuple[Payloads, Sums | None]:
        """Put this rank's shards of a bucket together, and pass them to rank 0 as payloads.

        Collectives: those of `assemble`, and of `pass_to_rank_zero`.

        Args:
            tensors: parameters of this rank by Megatron's name.
            bucket: number of the bucket; the first one begins a push.
            with_sums: whether checksums are made.
            timeout_s: deadline. [s]

        Returns:
            Payloads, on rank 0 those of all ranks; and with the last bucket the sums of all, which are empty if none
            were to be made.

        Raises:
            RuntimeError: another rank is lost or late (from torch).
        """
        if bucket == 0:
            self._sums = {}
        self._held = {}  # the last bucket's memory is free before this one needs it
        self._held = assemble(
            self._shares[bucket],
            tensors,
            group=self._pieces_group,
            rank=self._group.rank(),
            device=self._device,
            timeout_s=timeout_s,
        )
        payloads = {}
        for receiver, shards in self._held.items():
            payloads[receiver] = [serialize([*shards.items()]) for _ in range(self._copies)]
            if with_sums:
                sums = added_up({name: [checksum(each, [0] * each.dim(), each.shape)] for name, each in shards.items()})
                for first_rank in self._first_ranks:
                    self._sums.setdefault(first_rank + receiver, {}).update(sums)
        found = pass_to_rank_zero(payloads, self._senders[bucket], group=self._group, timeout_s=timeout_s)
        return found, self._sums if bucket == len(self._shares) - 1 else None

    def release(self) -> None:
        """Free the tensors of the last bucket, once all servers have taken them."""
        self._held = {}
        if self._device.type == "cuda":
            torch.cuda.ipc_collect()


def plan_of(rank: int, buckets: Sequence[Bucket], *, first_ranks: Sequence[int]) -> dict[str, Any]:
    """What a rank does in all buckets, for JSON.

    Args:
        rank: rank of the trainer.
        buckets: from `divide`.
        first_ranks: rank in the group of each server's first rank.

    Returns:
        The part of the plan that `Assembler` takes.
    """
    return {
        "shares": [bucket.get(rank, Share()).as_json() for bucket in buckets],
        "senders": [sorted(each for each, share in bucket.items() if share.makes) for bucket in buckets],
        "first_ranks": list(first_ranks),
    }


@torch.no_grad()
def assemble(
    share: Share,
    tensors: Mapping[str, Tensor],
    *,
    group: dist.ProcessGroup,
    rank: int,
    device: torch.device,
    timeout_s: float,
) -> Shards:
    """Give other ranks what they need in a bucket, take what this rank needs, and put its tensors together.

    Collectives: one message at most from each rank to each other; over NCCL, before that, `all_reduce` of [1] over all
    ranks of the group, so every rank must call this for each bucket.

    Args:
        share: this rank's share of the bucket.
        tensors: parameters of this rank by Megatron's name; read only.
        group: ranks of the trainer, perhaps with others behind them, by their ranks in the job.
        rank: this rank of the trainer.
        device: device of messages and of what is put together.
        timeout_s: deadline of all messages together. [s]

    Returns:
        The tensors in the servers' dtypes; padded rows are 0.

    Raises:
        RuntimeError: another rank is lost or late (from torch).
    """
    shards: Shards = {}
    for each in share.makes:
        dtype = getattr(torch, each.dtype)
        shards.setdefault(each.receiver, {})[each.name] = torch.zeros(each.shape, dtype=dtype, device=device)

    def target(receiver: int, part: Part) -> Tensor:
        return block_of(shards[receiver][part.target], part.start, part.stop)

    def source(part: Part) -> Tensor:
        return block_of(tensors[part.source], part.source_start, part.source_stop)

    channel = Channel(group, [], timeout_s=timeout_s)
    channel.open()
    buffers = {peer: _buffer(parts, device) for peer, parts in share.takes}
    # Receives and sends in one batch: over NCCL, two ranks that send to each other would otherwise wait for ever.
    operations = [dist.P2POp(dist.irecv, data, peer, group) for peer, data in buffers.items()]
    for peer, parts in share.gives:
        if peer == rank:
            for receiver, part in parts:
                target(receiver, part).copy_(source(part))  # a server stacks experts in a dimension before the others
            continue
        data = _buffer(parts, device)
        for (_, part), piece in zip(parts, _pieces(data, parts), strict=True):
            piece.copy_(source(part))
        operations.append(dist.P2POp(dist.isend, data, peer, group))
    if operations:
        channel.wait(dist.batch_isend_irecv(operations))
    for peer, parts in share.takes:
        for (receiver, part), piece in zip(parts, _pieces(buffers[peer], parts), strict=True):
            target(receiver, part).copy_(piece)
    return shards


def _buffer(parts: Iterable[tuple[int, Part]], device: torch.device) -> Tensor:
    return torch.empty(sum(part.num_bytes for _, part in parts), dtype=torch.uint8, device=device)


def _pieces(data: Tensor, parts: Sequence[tuple[int, Part]]) -> list[Tensor]:
    """Places of the parts in a message, in their dtypes and shapes."""
    pieces = data.split([part.num_bytes for _, part in parts])
    return [
        piece.view(getattr(torch, part.dtype)).view(part.sizes) for (_, part), piece in zip(parts, pieces, strict=True)
    ]


def pass_to_rank_zero(
    content: Mapping[int, Sequence[str]], senders: Iterable[int], *, group: dist.ProcessGroup, timeout_s: float
) -> dict[int, list[str]]:
    """Bring requests' payloads to rank 0, which sends the requests.

    Collectives: two messages from each other rank in `senders` to rank 0.

    Args:
        content: payloads of this rank: rank of a server -> one for each server.
        senders: ranks of the trainer that have payloads.
        group: the ranks, over gloo.
        timeout_s: deadline of each message. [s]

    Returns:
        All payloads on rank 0; those of this rank on others.

    Raises:
        RuntimeError: another rank is lost or late (from torch).
    """
    channel, found, rank = Channel(group, [], timeout_s=timeout_s), dict(content), group.rank()

    def move(operation: Callable[..., object], data: Tensor, peer: int) -> Tensor:
        channel.wait(dist.batch_isend_irecv([dist.P2POp(operation, data, peer, group)]))
        return data

    for sender in senders:
        if rank == sender != 0:
            data = torch.frombuffer(bytearray(json.dumps(list(content.items())).encode()), dtype=torch.uint8)
            move(dist.isend, torch.tensor([data.numel()]), 0)
            move(dist.isend, data, 0)
        elif rank == 0 != sender:
            size = move(dist.irecv, torch.zeros(1, dtype=torch.int64), sender)
            data = move(dist.irecv, torch.empty(int(size), dtype=torch.uint8), sender)
            found.update((receiver, payloads) for receiver, payloads in json.loads(data.numpy().tobytes()))
    return {receiver: list(payloads) for receiver, payloads in found.items()}

"""Takes this rank's part of new weights inside of a rollout server, straight from the trainer's ranks that hold it.

SGLang calls `receive` on every rank of a server that was started with `--custom-weight-loader megacov_receiver.receive`
and has this file's folder on its PYTHONPATH. The request that calls it carries nothing. What to do stands in the store
in which the ranks of a group have met, as JSON, and the bytes come over the group. This file needs nothing but torch,
and no error leaves `receive`: one that did would end the server.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store
from torch.distributed.distributed_c10d import _world

GROUP_PREFIX = "megacov-shards-"
"""Beginning of the names of groups over which shards come."""
ALIGNMENT_BYTES = 16
"""Each message begins at a multiple of this in its buffer, where it can then be viewed in any dtype."""

_FIRST_TIMEOUT_S = 30.0  # until a task is read, which the trainer writes before it sends its request
_SHORTEST_POLL_S, _LONGEST_POLL_S = 0.0005, 0.02
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ELEMENTS_AT_ONCE = 1 << 22
_ODD, _OTHER_ODD = -7046029254386353131, -4658895280553007687  # of 64 bits, without a pattern


class Part(NamedTuple):
    """A block of a tensor on its way; a list in JSON. Starts and stops are an index for each dimension.

    source, source_start, source_stop: what the sender reads; target, start, stop: what the receiver writes.
    dtype, shape: of the whole target; the sender casts.
    """

    source: str
    source_start: Sequence[int]
    source_stop: Sequence[int]
    target: str
    start: Sequence[int]
    stop: Sequence[int]
    dtype: str
    shape: Sequence[int]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Size of the target block in each dimension."""
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return int(getattr(torch, self.dtype).itemsize)

    @property
    def num_bytes(self) -> int:
        """Bytes on the way."""
        return prod(self.sizes) * self.itemsize


Message = tuple[int, Sequence[Part]]  # rank of the other side, and parts in the order of their bytes


def read_rounds(content: Iterable[Iterable[Iterable[Any]]]) -> list[list[Message]]:
    """The messages of each round, from JSON."""
    return [[(peer, [Part(*part) for part in parts]) for peer, parts in messages] for messages in content]


class PeerLostError(RuntimeError):
    """A message with another rank did not come through, which is the fault of that rank or of the network."""


class Board:
    """Messages that the ranks of a group leave for each other, as JSON. Several threads may use it."""

    def __init__(self, store: Store) -> None:
        """Use the store in which the ranks have met."""
        self._store = store

    def write(self, key: str, value: object) -> None:
        """Leave a message for all ranks."""
        self._store.set(key, zlib.compress(json.dumps(value).encode()))  # type: ignore[arg-type]  # bytes will do

    def read(self, key: str, *, timeout_s: float) -> Any:
        """Wait for a message; other threads can use the store meanwhile. Raises RuntimeError if there is none."""
        deadline, pause_s = time.monotonic() + timeout_s, _SHORTEST_POLL_S
        while not self.has([key]):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no message {key!r} came within {timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_POLL_S)
        return json.loads(zlib.decompress(self._store.get(key)))

    def has(self, keys: Sequence[str]) -> bool:
        """Whether all these messages are there."""
        return bool(self._store.check(list(keys)))

    def count(self, key: str, more: int = 0) -> int:
        """Add to a counter of all ranks, and return it."""
        return int(self._store.add(key, more))

    def remove(self, keys: Iterable[str]) -> None:
        """Remove messages and counters, if they are there."""
        for key in keys:
            self._store.delete_key(key)


def board_of(group: dist.ProcessGroup) -> Board:
    """The board of a group of `_new_process_group_helper`, which SGLang and the trainer use."""
    return Board(_world.pg_map[group][1])


class Turn:
    """One rank's part in one hand-over of weights: nobody sends or writes before every rank has agreed."""

    def __init__(self, group: dist.ProcessGroup, *, number: int, timeout_s: float) -> None:
        """Begin the hand-over of this number, which must be over at a deadline. [s]"""
        self._board, self._number, self._rank = board_of(group), number, group.rank()
        self._deadline = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Time until the deadline. [s]"""
        return max(self._deadline - time.monotonic(), 0.0)

    def agree(self) -> bool:
        """Agree to the hand-over, and wait for the others; False if it does not take place."""
        self._board.write(f"{self._number}/ready/{self._rank}", True)
        try:
            return bool(self._board.read(f"{self._number}/go", timeout_s=self.left_s))
        except RuntimeError as error:
            raise PeerLostError(str(error)) from error

    def end(self, **result: object) -> None:
        """Report that this rank has done its part."""
        self._board.write(f"{self._number}/done/{self._rank}", result)

    def fail(self, error: Exception, text: str) -> None:
        """Report that this rank has failed, by its own fault unless another rank is lost."""
        has_lost_peer = isinstance(error, PeerLostError)
        self._board.write(f"{self._number}/done/{self._rank}", {"error": text, "has_lost_peer": has_lost_peer})
        self._board.count(f"{self._number}/failures", 1)


class Channel:
    """Messages of one rank in rounds, through two buffers: one is under way while the other is filled or emptied."""

    def __init__(self, group: dist.ProcessGroup, rounds: Sequence[Sequence[Message]], *, timeout_s: float) -> None:
        """Allocate the buffers for the messages of each round, which all together must be over at a deadline. [s]"""
        self._is_nccl = dist.get_backend(group) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if self._is_nccl else torch.device("cpu")
        self._group, self._rounds, self._deadline = group, rounds, time.monotonic() + timeout_s
        self._sizes = [[sum(part.num_bytes for part in parts) for _, parts in messages] for messages in rounds]
        sizes = [sum(size + -size % ALIGNMENT_BYTES for size in each) for each in self._sizes]
        most = [max(sizes[first::2], default=0) for first in (0, 1)]
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=self._device) for size in most]

    def open(self) -> None:
        """Begin; with NCCL, all ranks of the group must."""
        if self._is_nccl:  # its first call must be one of all ranks, of which some have no message in the first round
            dist.all_reduce(torch.zeros(1, device=self._device), group=self._group)

    def parts(self, number: int) -> Iterator[tuple[int, Part, Tensor]]:
        """The parts of a round: rank of the other side, part, and its place in the buffer, in its dtype and shape."""
        for (peer, parts), data in zip(self._rounds[number], self._cut(number), strict=True):
            for part, piece in zip(parts, data.split([part.num_bytes for part in parts]), strict=True):
                yield peer, part, piece.view(getattr(torch, part.dtype)).view(part.sizes)

    def post(self, number: int, operation: Callable[..., Any]) -> list[dist.Work]:
        """Begin to send (`dist.isend`) or take (`dist.irecv`) the messages of a round, all at once with NCCL."""
        messages = zip(self._rounds[number], self._cut(number), strict=True)
        operations = [dist.P2POp(operation, data, peer, self._group, number) for (peer, _), data in messages]
        try:
            return dist.batch_isend_irecv(operations) if operations else []
        except RuntimeError as error:  # gloo knows already that the other side is lost
            raise PeerLostError(str(error)) from error

    def wait(self, works: Iterable[dist.Work]) -> None:
        """Wait until a round is complete; raises PeerLostError at the deadline, or if the other side is lost."""
        for work in works:
            # Gloo's work is complete only once it was waited for, and NCCL's wait would block only its stream.
            while self._device.type == "cuda" and not work.is_completed():
                if time.monotonic() > self._deadline:
                    raise PeerLostError("a message between two ranks was not complete at its deadline")
                time.sleep(_SHORTEST_POLL_S)
            try:
                work.wait(timedelta(seconds=max(self._deadline - time.monotonic(), 0.001)))
            except RuntimeError as error:
                raise PeerLostError(str(error)) from error

    def take(self, keep: Callable[[Part, Tensor], None]) -> None:
        """Give each part and its values to `keep`, and raise its error once all have come: no sender shall wait."""
        failure: Exception | None = None
        coming = self.post(0, dist.irecv) if self._rounds else []
        for number in range(len(self._rounds)):
            here = coming
            try:
                coming = self.post(number + 1, dist.irecv) if number + 1 < len(self._rounds) else []
                self.wait(here)
                for _, part, values in self.parts(number) if failure is None else ():
                    keep(part, values)
            except PeerLostError as error:
                raise failure or error from None
            except Exception as error:  # noqa: BLE001 - raised below
                failure = error
        if failure is not None:
            raise failure

    def _cut(self, number: int) -> list[Tensor]:
        padded = [size + -size % ALIGNMENT_BYTES for size in self._sizes[number]]
        places = self._buffers[number % 2][: sum(padded)].split(padded) if padded else []
        return [place[:size] for place, size in zip(places, self._sizes[number], strict=True)]


def block_of(tensor: Tensor, start: Sequence[int], stop: Sequence[int]) -> Tensor:
    """A block of a tensor, as a view."""
    return tensor[tuple(slice(first, last) for first, last in zip(start, stop, strict=True))]


def checksum(values: Tensor, start: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Sum of a block's bits modulo 2**64, those of each element times an odd number that its place gives.

    The sum over blocks, in whatever order, is that of the tensor. A change of one element always changes it.

    Args:
        values: the block, in any dtype.
        start: its first index in each dimension of the tensor.
        shape: shape of the whole tensor.

    Returns:
        [] int64, on the device of the block.
    """
    if values.numel() > _ELEMENTS_AT_ONCE:
        dim = max(range(values.dim()), key=lambda each: values.shape[each])
        half = values.shape[dim] // 2
        later = [place + half * (each == dim) for each, place in enumerate(start)]
        first, second = values.split([half, values.shape[dim] - half], dim)
        return checksum(first, start, shape) + checksum(second, later, shape)
    place = torch.zeros((), dtype=torch.int64, device=values.device)
    for size, first_index, whole in zip(values.shape, start, shape, strict=True):
        place = place[..., None] * whole + torch.arange(first_index, first_index + size, device=values.device)
    factors = place * _ODD
    factors = (factors ^ (factors >> 29)) * _OTHER_ODD
    bits = values.contiguous().view(_BITS[values.dtype.itemsize])
    return (bits.to(torch.int64) * ((factors ^ (factors >> 32)) | 1)).sum()


def added_up(sums: Mapping[str, Sequence[Tensor]]) -> dict[str, int]:
    """Checksum of each tensor from those of its blocks, with one wait for the device."""
    totals = [torch.stack(list(each)).sum() for each in sums.values()]
    return dict(zip(sums, torch.stack(totals).tolist(), strict=True)) if totals else {}


def receive(model: torch.nn.Module, named_tensors: object) -> None:
    """SGLang's custom weight loader: do what the task in the newest group's store asks for; without a group, nothing.

    Args:
        model: the model of this rank.
        named_tensors: what the request carries, which is nothing.
    """
    groups = [group for group, name in _world.pg_names.items() if name.startswith(GROUP_PREFIX)]
    if not groups:
        return
    try:
        task = board_of(groups[-1]).read("task", timeout_s=_FIRST_TIMEOUT_S)
        turn = Turn(groups[-1], number=task["number"], timeout_s=task["timeout_s"])
        try:
            turn.end(**_do(task, model, groups[-1], turn))
        except Exception as error:  # noqa: BLE001 - it would end the server, and the trainer must know of it
            turn.fail(error, f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 - without its store, the trainer learns of it by its own deadline
        print(f"megacov_receiver: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _do(task: Mapping[str, Any], model: torch.nn.Module, group: dist.ProcessGroup, turn: Turn) -> dict[str, Any]:
    parameters = {name: each.data for name, each in model.named_parameters()}
    if task["kind"] == "describe":
        layout = {name: (_name(each.dtype), list(each.shape)) for name, each in parameters.items()}
        summed = parameters if task["with_sums"] else {}
        found = {name: [checksum(each, [0] * each.dim(), each.shape)] for name, each in summed.items()}
        return {"layout": layout, "sums": added_up(found)}
    rounds = read_rounds(board_of(group).read(f"plan/{group.rank()}", timeout_s=turn.left_s))
    parts = [part for messages in rounds for _, parts in messages for part in parts]
    for part in parts:
        _check(part, parameters.get(part.target))
    channel = Channel(group, rounds, timeout_s=turn.left_s)  # before any rank writes: there may be no memory for it
    if not turn.agree():
        return {}

    def keep(part: Part, values: Tensor) -> None:
        block_of(parameters[part.target], part.start, part.stop).copy_(values)

    with torch.no_grad():
        channel.open()
        channel.take(keep)
        sums: dict[str, list[Tensor]] = {}
        for part in parts if task["with_sums"] else ():
            block = block_of(parameters[part.target], part.start, part.stop)
            sums.setdefault(part.target, []).append(checksum(block, part.start, part.shape))
    return {"sums": added_up(sums)}


def _check(part: Part, parameter: Tensor | None) -> None:
    """Refuse a part that this rank's parameter does not take, before anything is written."""
    if parameter is None:
        raise ValueError(f"the model has no parameter {part.target}")
    found, sent = (_name(parameter.dtype), list(parameter.shape)), (part.dtype, list(part.shape))
    if found != sent:
        raise ValueError(f"{part.target} is {found[0]} {found[1]} here, and the trainer sends {sent[0]} {sent[1]}")
    if not all(0 <= start < stop <= size for start, stop, size in zip(part.start, part.stop, part.shape, strict=True)):
        raise ValueError(f"{part.target} has no block from {list(part.start)} to {list(part.stop)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

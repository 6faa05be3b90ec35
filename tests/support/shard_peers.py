"""Processes in place of a server's rank and of further ranks of the trainer, for pushes from shard to shard.

Everything but the model is real: the receiver, the group, the store. A server of `receiving_server` answers the HTTP
calls of a push, and passes those that concern the group on to its ranks.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megacov.weight_receiver import megacov_receiver
from megacov.weight_sync.process_group import join_group, leave, meet_at
from megacov.weight_sync.shard_sender import ShardSender
from tests.support.forked import context, start_fork_server
from tests.support.scripted_server import DROP, Call, Reply

Shapes = dict[str, tuple[int, ...]]
FAULTS = (
    "",
    "dies in the middle",
    "hangs in the middle",
    "flips a bit",
    "is late",
    "cannot write",
    "has no memory",
    "loses a peer",
)


class Rank:
    """A process that does one thing at a time, as it is asked to; an answer of None means that it is dead."""

    def __init__(self, kind: Callable[..., Any], *args: Any) -> None:
        start_fork_server()
        self._pipe, other = context.Pipe()
        self._asking = threading.Lock()
        self._process = context.Process(target=_serve, args=(other, kind, *args))
        self._process.start()
        other.close()

    def ask(self, what: str, *args: Any) -> Any:
        """Have the process do something, and wait for its answer."""
        with self._asking:
            try:
                self._pipe.send((what, args))
                return self._pipe.recv()
            except (EOFError, OSError):
                return None

    def tell(self, what: str, *args: Any) -> None:
        """Have the process do something; `answer` waits for its end."""
        self._pipe.send((what, args))

    def answer(self) -> Any:
        """Wait for the answer to `tell`."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()


def _serve(pipe: Any, kind: Callable[..., Any], *args: Any) -> None:
    torch.set_num_threads(1)
    own = kind(*args)
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send((getattr(own, what)(*arguments),))


class ServerRank:
    """A rank of a server: its model, and the receiver."""

    def __init__(self, shapes: Shapes, dtype: str) -> None:
        self._model = nn.Module()
        for name, shape in shapes.items():
            owner = self._model
            *path, last = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.register_parameter(last, nn.Parameter(torch.full(shape, 7.0, dtype=getattr(torch, dtype))))
        self._groups: dict[str, Any] = {}

    def join(self, body: dict[str, Any], rank: int) -> None:
        """As SGLang does when it is to join a group."""
        store = meet_at(body["master_address"], body["master_port"], world_size=body["world_size"], timeout_s=30.0)
        names = {"name": body["group_name"], "backend": body["backend"], "world_size": body["world_size"]}
        self._groups[body["group_name"]] = join_group(store, rank=rank, timeout_s=30.0, **names)

    def leave(self, name: str) -> None:
        """As SGLang does, which refuses a group that it does not know."""
        if name in self._groups:
            leave(self._groups.pop(name), backend="gloo")

    def receive(self, fault: str, late_s: float) -> None:
        """Run the receiver, perhaps with a fault."""
        assert fault in FAULTS
        original = megacov_receiver.block_of, megacov_receiver.Channel.wait, megacov_receiver.checksum
        init = megacov_receiver.Channel.__init__
        writes = 0

        def block_of(tensor: torch.Tensor, start: Sequence[int], stop: Sequence[int]) -> torch.Tensor:
            nonlocal writes
            writes += 1
            if fault == "cannot write" and writes == 3:
                raise torch.OutOfMemoryError("no memory")
            return original[0](tensor, start, stop)

        def wait(channel: Any, works: Any) -> None:
            nonlocal writes
            if fault == "dies in the middle" and writes > 3:
                os._exit(9)
            if fault == "hangs in the middle" and writes > 3:
                time.sleep(late_s)  # its connections stay open
            original[1](channel, works)

        def checksum(values: torch.Tensor, *where: Any) -> torch.Tensor:
            nonlocal fault
            if fault == "flips a bit":
                values[(0,) * values.dim()].view(torch.int16).bitwise_xor_(64)  # in the model itself
                fault = ""
            return original[2](values, *where)

        def no_memory(*args: Any, **kwargs: Any) -> None:
            raise torch.OutOfMemoryError("no memory")

        def no_peer(*args: Any) -> None:
            raise RuntimeError("Connection closed by peer")

        if fault == "is late":
            time.sleep(late_s)
        post = dist.batch_isend_irecv
        if fault == "loses a peer":
            dist.batch_isend_irecv = no_peer
        if fault == "has no memory":
            megacov_receiver.Channel.__init__ = no_memory  # type: ignore[method-assign]
        megacov_receiver.block_of, megacov_receiver.Channel.wait, megacov_receiver.checksum = block_of, wait, checksum
        try:
            megacov_receiver.receive(self._model, [])
        finally:
            megacov_receiver.block_of, megacov_receiver.Channel.wait, megacov_receiver.checksum = original
            megacov_receiver.Channel.__init__, dist.batch_isend_irecv = init, post  # type: ignore[method-assign]

    def take(self, payload: str, fault: str, late_s: float) -> None:
        """As SGLang does with `load_format: direct`: it dies of what does not fit."""
        if fault == "is late":
            time.sleep(late_s)
        own = dict(self._model.named_parameters())
        for name, tensor in pickle.loads(base64.b64decode(payload)):
            if fault == "dies in the middle" or name not in own or own[name].shape != tensor.shape:
                os._exit(9)
            own[name].data.copy_(tensor)

    def parameters(self) -> dict[str, torch.Tensor]:
        """Copies of all parameters."""
        return {name: each.detach().clone() for name, each in self._model.named_parameters()}


class TrainerRank:
    """A further rank of the trainer."""

    def __init__(self, rank: int, tensors: dict[str, torch.Tensor]) -> None:
        self._rank, self._tensors, self._sender = rank, tensors, ShardSender()

    def hold(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take other weights."""
        self._tensors = tensors

    def obey(self, command: dict[str, Any], dies: bool) -> None:
        """Do what rank 0 wants; or begin to, and die."""
        if dies and command["do"] == "assemble":
            # Before its message is out: with that, rank 0 may go on, and notices only later.
            dist.batch_isend_irecv = lambda *_: os._exit(9)
        if dies and command["do"] == "send":
            original = self._sender._send

            def die(*args: Any, **kwargs: Any) -> Any:
                megacov_receiver.Channel.post = lambda *_: os._exit(9)  # type: ignore[method-assign]
                return original(*args, **kwargs)

            self._sender._send = die  # type: ignore[method-assign]
        self._sender.obey(command, self._tensors, rank=self._rank)


class ReceivingServer:
    """Answers a server's HTTP calls during a push; use it as a script of `scripted_clients`."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self.ranks, self.faults, self.late_s = list(ranks), [""] * len(ranks), 0.0
        self.calls: list[str] = []
        self.version, self.is_open = "default", False
        self.meanwhile: Callable[[str], None] = lambda path: None  # called with each call's path

    async def __call__(self, call: Call) -> Reply:
        self.calls.append(call.path)
        self.meanwhile(call.path)
        answers: list[Any] = [()]
        if call.path == "/init_weights_update_group":
            body = call.body
            answers = await self._all(lambda place: ("join", body, body["rank_offset"] + place))
        elif call.path == "/destroy_weights_update_group":
            answers = await self._all(lambda _: ("leave", call.body["group_name"]))
        elif call.path == "/update_weights_from_tensor" and call.body.get("load_format") == "direct":
            payloads = call.body["serialized_named_tensors"]
            assert self.is_open and len(payloads) == len(self.ranks)
            answers = await self._all(lambda place: ("take", payloads[place], self.faults[place], self.late_s))
        elif call.path == "/update_weights_from_tensor":
            assert self.is_open and call.body["serialized_named_tensors"] == ["gARdlC4="] * len(self.ranks)
            answers = await self._all(lambda place: ("receive", self.faults[place], self.late_s))
        elif call.path in ("/begin_weight_update", "/end_weight_update"):
            answers = await self._all(lambda _: ("parameters",))
            self.is_open = call.path.startswith("/begin")
        elif call.path == "/update_weight_version":
            self.version = call.body["new_version"]
        if any(answer is None for answer in answers):
            return DROP
        return Reply({"success": True, "weight_version": self.version, "new_version": self.version})

    async def _all(self, what: Callable[[int], tuple[Any, ...]]) -> list[Any]:
        asks = (asyncio.to_thread(rank.ask, *what(place)) for place, rank in enumerate(self.ranks))
        return await asyncio.gather(*asks)


@contextmanager
def ended(*ranks: Rank) -> Iterator[None]:
    """Kill the processes at the end."""
    try:
        yield
    finally:
        for rank in ranks:
            rank.end()

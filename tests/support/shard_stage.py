"""Pushes from shard to shard by two ranks of a trainer, one of them in this process, to servers of `shard_peers`.

Servers have one rank. Everything but the model and the servers' HTTP is real.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from megacov.errors import WeightSyncError
from megacov.plan.pieces import Block, Piece
from megacov.weight_sync import Meeting, OwnShards, ReshardTransport, SessionSettings
from megacov.weight_sync.shard_transport import ShardTransport
from tests.support.scripted_server import scripted_clients
from tests.support.shard_peers import Rank, ReceivingServer, ServerRank, TrainerRank, ended

# Two ranks of the trainer hold the rows of "w" and of a stacked expert; "n" is on both, and the first one sends it.
ROWS, COLUMNS = 6, 50
SHAPES = {"a.w": (ROWS, COLUMNS), "a.n": (COLUMNS,), "b.experts.w": (2, 3, COLUMNS)}
TIMEOUT_S = 15.0


def tensors_of(rank: int, seed: int) -> dict[str, torch.Tensor]:
    """Parameters of a rank of the trainer."""
    generator = torch.Generator().manual_seed(100 * seed + rank)
    tensors = {
        name: torch.randn(shape, generator=generator) for name, shape in (("W", (3, COLUMNS)), ("E", (3, COLUMNS)))
    }
    return tensors | {"N": torch.arange(COLUMNS) + float(seed)}


def expected(seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """What a server then holds."""
    one, other = tensors_of(0, seed), tensors_of(1, seed)
    found = {
        "a.w": torch.cat([one["W"], other["W"]]),
        "a.n": one["N"],
        "b.experts.w": torch.stack([one["E"], other["E"]]),
    }
    return {name: each.to(dtype) for name, each in found.items()}


@dataclass
class Plan:
    """Who sends what."""

    servers: int
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: dict(SHAPES))

    def target_shapes(self, receiver: int) -> dict[str, tuple[int, ...]]:
        """As `ReshardPlan`."""
        return self.shapes

    def pieces(self) -> Iterator[Piece]:
        """As `ReshardPlan`."""
        for server in range(self.servers):
            for rank in range(2):
                rows = Block("a.w", (3 * rank, 0), (3 * rank + 3, COLUMNS))
                yield Piece(rank, Block("W", (0, 0), (3, COLUMNS)), server, 0, rows)
                expert = Block("b.experts.w", (rank, 0, 0), (rank + 1, 3, COLUMNS))
                yield Piece(rank, Block("E", (0, 0), (3, COLUMNS)), server, 0, expert)
            yield Piece(0, Block("N", (0,), (COLUMNS,)), server, 0, Block("a.n", (0,), (COLUMNS,)))

    def assembler(self, piece: Piece) -> int:
        """As `ReshardPlan`."""
        return int("experts" in piece.target.name)  # so that either rank needs something of the other


class Stage:
    """Rank 0 in this process, another rank of the trainer, and servers with one rank each."""

    def __init__(
        self, servers: list[ReceivingServer], sender: Rank, clients: Any, transport: ShardTransport[Any]
    ) -> None:
        self.servers, self.sender, self.clients, self.transport = servers, sender, clients, transport
        self.sender_dies, self._version = False, 0

    def push(self, seed: int = 1) -> str:
        """Push weights of this seed, and return the sentence of the error, if there is one."""
        self._version += 1

        def lead(command: Any) -> None:
            self.sender.tell("obey", dict(command), self.sender_dies)
            self._answers += 1

        self._answers = 0
        self.sender.ask("hold", tensors_of(1, seed))
        shards = OwnShards(tensors_of(0, seed), 2, lead)
        try:
            self.transport.push(self._version, shards)
        except WeightSyncError as error:
            self.failed = list(getattr(error, "failures", {}))
            return str(error)
        finally:
            for _ in range(self._answers):
                self.sender.answer()
        return ""

    def num_keys(self) -> int:
        """Messages and counters on the group's board."""
        return int(self.transport._sender.board._store.num_keys())


@contextmanager
def stage(
    number: int = 1,
    *,
    kind: type[ShardTransport[Any]] = ReshardTransport,
    dtype: str = "bfloat16",
    plan: Plan | None = None,
    **settings: Any,
) -> Iterator[Stage]:
    """Servers of one rank, and a transport whose messages are much smaller than the weights."""
    ranks, sender = [Rank(ServerRank, SHAPES, dtype) for _ in range(number)], Rank(TrainerRank, 1, {})
    servers = [ReceivingServer([rank]) for rank in ranks]
    with ExitStack() as stack:
        stack.enter_context(ended(*ranks, sender))
        clients, run = stack.enter_context(scripted_clients(*servers))
        transport = kind(
            clients,
            run=run,
            settings=SessionSettings(**{"bucket_bytes": 150, "timeout_s": TIMEOUT_S} | settings),
            meeting=Meeting("gloo", "127.0.0.1", torch.device("cpu")),
            make_plan=lambda layout: plan or Plan(layout.number if kind is ReshardTransport else 1),
        )
        yield Stage(servers, sender, clients, transport)


def held(server: ReceivingServer) -> dict[str, torch.Tensor]:
    """Parameters of a server."""
    (parameters,) = server.ranks[0].ask("parameters")
    return parameters


def assert_holds(server: ReceivingServer, weights: dict[str, torch.Tensor]) -> None:
    """Compare a server's parameters bit by bit."""
    found = held(server)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], each) for name, each in weights.items())


def serves(server: ReceivingServer) -> bool:
    """Whether a server was resumed."""
    return "/continue_generation" in server.calls

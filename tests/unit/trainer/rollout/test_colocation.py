"""Servers on the trainer's GPUs: memory changes hands once each way, and impossible settings are refused."""

from __future__ import annotations

import pytest

from megacov.config import load_config
from megacov.errors import ConfigError
from megacov.trainer.rollout.colocation import LentMemory
from megacov.weight_sync import ServersFailedError
from tests.support.scripted_server import Call, Reply, scripted_clients
from tests.support.sglang_servers import RUN

COLOCATED = ("rollout.colocated=true", "weight_sync.transport=ipc")


class Lender:
    """Keeps account of its memory; refuses to allocate what it holds and to free what it has freed."""

    def __init__(self) -> None:
        self.held = {"weights", "kv_cache", "cuda_graph"}
        self.calls: list[tuple[str, list[str]]] = []
        self.is_paused = False
        self.under_way = 0

    async def __call__(self, call: Call) -> Reply:
        if call.path == "/pause_generation":
            self.is_paused = True
            return Reply({})
        if call.path == "/flush_cache":
            assert self.is_paused
            self.under_way -= self.under_way > 0
            return Reply(b"Flush cache failed.", status=400) if self.under_way else Reply({})
        tags = call.body.get("tags", ["weights", "kv_cache", "cuda_graph"])
        self.calls.append((call.path, tags))
        is_release = call.path == "/release_memory_occupation"
        assert not (is_release and self.under_way)
        if set(tags).isdisjoint(self.held) == is_release:
            return Reply({"error": {"message": f"cannot: {tags} of {self.held}"}}, status=400)
        self.held = self.held - set(tags) if is_release else self.held | set(tags)
        return Reply(None)


def test_memory_is_freed_at_once_and_allocated_in_two_parts():
    servers = Lender(), Lender()
    with scripted_clients(*servers) as (clients, run):
        memory = LentMemory(clients)
        for _ in range(2):
            run(memory.give())
            assert all(server.held == set() for server in servers)
            run(memory.take_weights())
            assert all(server.held == {"weights"} for server in servers)
            run(memory.take_weights())  # as before a repeated push
            run(memory.take_everything_else())
            assert all(server.held == {"weights", "kv_cache", "cuda_graph"} for server in servers)
        assert [len(server.calls) for server in servers] == [6, 6]


def test_a_restarted_server_has_freed_nothing():
    servers = Lender(), Lender()
    with scripted_clients(*servers) as (clients, run):
        receiving = clients[:1]
        memory = LentMemory(receiving)
        run(memory.give())
        receiving[:] = clients[1:]
        run(memory.take_weights())
        run(memory.take_everything_else())
        assert servers[1].calls == []
        run(memory.give())
        assert servers[1].held == set()


def test_a_server_frees_nothing_before_it_is_idle():
    server = Lender()
    server.under_way = 3
    with scripted_clients(server) as (clients, run):
        run(LentMemory(clients).give())
    assert server.is_paused and server.held == set() and len(server.calls) == 1


def test_a_lost_server_is_not_asked_to_allocate_what_it_had_freed():
    server = Lender()
    with scripted_clients(server) as (clients, run):
        memory = LentMemory(clients)
        run(memory.give())
        server.held = {"weights", "kv_cache", "cuda_graph"}  # restarted
        memory.forget(clients)
        run(memory.take_weights())
        run(memory.take_everything_else())
        assert len(server.calls) == 1
        run(memory.give())
        assert server.held == set()


def test_a_refusal_names_the_server():
    server = Lender()
    server.held = set()
    with scripted_clients(server) as (clients, run), pytest.raises(ServersFailedError, match="cannot"):
        run(LentMemory(clients).give())


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rollout.max_staleness=1", "colocated is true and rollout.max_staleness is 1"),
        ("weight_sync.transport=broadcast", "NCCL takes no two ranks on one GPU"),
    ],
)
def test_settings_that_exclude_colocation_are_refused(override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config(RUN, (*COLOCATED, override))

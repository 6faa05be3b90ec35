"""Whole shards in requests to servers on this machine: put together by the ranks, and checked before they are sent."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from megacov.weight_sync import IpcShardsTransport
from tests.support.shard_peers import Rank, ReceivingServer, ServerRank, ended
from tests.support.shard_stage import (
    COLUMNS,
    ROWS,
    SHAPES,
    TIMEOUT_S,
    Plan,
    Stage,
    assert_holds,
    expected,
    held,
    serves,
    stage,
)

torch.set_num_threads(1)
UPDATE = "/update_weights_from_tensor"
DESCRIBE = ["/begin_weight_update", UPDATE, "/end_weight_update"]
TAKE = [UPDATE] * 3  # each parameter is larger than a bucket
AFTER = ["/end_weight_update", "/flush_cache", "/update_weight_version", "/model_info", "/continue_generation"]


def ipc_shards(number: int = 1, **options: Any):
    return stage(number, kind=IpcShardsTransport, **options)


def has_old_weights(server: ReceivingServer) -> bool:
    return set(torch.cat([each.flatten() for each in held(server).values()]).tolist()) == {7.0}


def test_servers_get_what_the_ranks_put_together_push_after_push():
    with ipc_shards(2) as here:
        assert here.push() == ""
        for server in here.servers:
            assert_holds(server, expected(1))
            checked = ["/pause_generation", "/begin_weight_update", *TAKE, UPDATE, *AFTER]
            assert server.calls == ["/model_info", "/init_weights_update_group", *DESCRIBE, *checked]
            server.calls.clear()
        assert here.push(2) == ""  # over the same group
        for server in here.servers:
            assert_holds(server, expected(2))
            assert server.calls == [*DESCRIBE, "/pause_generation", "/begin_weight_update", *TAKE, *AFTER]


def test_a_server_that_was_started_anew_in_another_layout_gets_nothing():
    with ipc_shards(timeout_s=2.0) as here:
        assert here.push() == ""
        (server,) = here.servers
        first, other = server.ranks, Rank(ServerRank, SHAPES | {"a.w": (2 * ROWS, COLUMNS)}, "bfloat16")
        with ended(other):
            server.ranks = [other]
            server.calls.clear()
            assert "has reported nothing: the server was started anew" in here.push(2)
            assert server.calls.count(UPDATE) == 1 and has_old_weights(server)  # the loader was asked, and nothing sent
            assert "has (12, 50) as a.w, and the plan has (6, 50)" in here.push(2)
            assert has_old_weights(server)
            server.ranks = first


def test_small_parameters_share_a_request():
    with ipc_shards(dtype="float32", bucket_bytes=1 << 20, verify="checksums") as here:
        assert here.push() == here.push(2) == ""
        assert_holds(here.servers[0], expected(2, torch.float32))
        # A push has a request to describe, one for either rank that puts some together, and one for the sums.
        assert here.servers[0].calls.count(UPDATE) == 2 * (1 + 2 + 1)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("a.w", (ROWS + 1, COLUMNS), "has (6, 50) as a.w, and the plan has (7, 50)"),
        ("a.bias", (3,), "has no such parameter as a.bias, and the plan has (3,)"),
    ],
)
def test_what_would_end_a_server_is_refused_before_anything_is_sent(name, shape, words):
    with ipc_shards(plan=Plan(1, SHAPES | {name: shape})) as here:
        why = here.push()
        assert words in why and "set weight_sync.transport=ipc, which leaves names and shapes to the server" in why
        assert has_old_weights(here.servers[0])
        assert "/pause_generation" not in here.servers[0].calls and not here.servers[0].is_open


def test_servers_that_store_weights_in_other_dtypes_are_refused():
    other = Rank(ServerRank, SHAPES, "float32")
    with ended(other), ipc_shards(2) as here:
        replaced, here.servers[1].ranks = here.servers[1].ranks, [other]
        why = here.push()
        assert "stores a.w as bfloat16" in why and "as float32: start equal servers" in why
        assert has_old_weights(here.servers[0])
        here.servers[1].ranks = replaced


def assert_nobody_serves(here: Stage) -> None:
    assert not any(map(serves, here.servers))
    assert [server.version for server in here.servers] == ["default"] * len(here.servers)


def test_a_server_that_dies_in_the_middle_is_named_and_nobody_serves():
    with ipc_shards(2) as here:
        here.servers[1].faults = ["dies in the middle"]
        started = time.monotonic()
        assert "New weights did not arrive whole" in here.push()
        assert time.monotonic() - started < TIMEOUT_S
        assert here.failed == here.clients[1:]
        assert_nobody_serves(here)
        here.clients.pop()  # as the fleet does with a server that failed
        assert here.push(2) == ""
        assert_holds(here.servers[0], expected(2))


def test_a_rank_of_the_trainer_that_dies_leaves_no_server_to_serve():
    with ipc_shards(2) as here:
        here.sender_dies = True
        started = time.monotonic()
        assert "rank 0 of the trainer: " in here.push()
        assert time.monotonic() - started < TIMEOUT_S
        assert_nobody_serves(here)


def test_a_late_server_is_given_up_at_the_deadline():
    with ipc_shards(2, timeout_s=2.0) as here:
        here.servers[1].faults, here.servers[1].late_s = ["is late"], 4.0
        assert "did not answer within 2 s" in here.push()
        assert here.failed == here.clients[1:]
        assert_nobody_serves(here)


def test_a_flipped_bit_is_found():
    with ipc_shards(2) as here:
        here.servers[0].faults = ["flips a bit"]
        assert "holds other bits than were sent in 1 tensors, such as " in here.push()
        assert here.failed == here.clients[:1]
        assert_nobody_serves(here)
        here.servers[0].faults = [""]
        assert here.push() == ""


def test_no_pickle_leaves_the_machine():
    with ipc_shards() as here:
        here.clients[0].connection.address = here.clients[0].address.replace("127.0.0.1", "10.1.2.3")
        assert "weight_sync.transport is ipc_shards and http://10.1.2.3" in here.push()
        assert here.servers[0].calls == []

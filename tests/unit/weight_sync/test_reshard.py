"""Weights from shard to shard over a real group: whole on every server, or on none that serves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from megacov.plan.pieces import Piece
from megacov.rollout.client.capabilities import Capabilities
from megacov.weight_sync import IpcShardsTransport, ReshardTransport
from tests.support.shard_peers import Rank, ServerRank, ended
from tests.support.shard_stage import (
    COLUMNS,
    ROWS,
    SHAPES,
    TIMEOUT_S,
    Plan,
    assert_holds,
    expected,
    held,
    serves,
    stage,
)

torch.set_num_threads(1)
SESSION = ["/begin_weight_update", "/update_weights_from_tensor", "/end_weight_update"]
PUSH = ["/pause_generation", *SESSION, "/flush_cache", "/update_weight_version", "/model_info", "/continue_generation"]


def test_servers_get_the_weights_of_all_ranks_push_after_push():
    with stage(2) as here:
        assert here.push() == ""
        for server in here.servers:
            assert_holds(server, expected(1))
            assert server.calls == ["/model_info", "/init_weights_update_group", *SESSION, *PUSH]
            assert server.version == "1"
            server.calls.clear()
        assert here.push(2) == ""  # over the same group
        for server in here.servers:
            assert_holds(server, expected(2))
            assert server.calls == PUSH


@pytest.mark.parametrize("verify", ["none", "checksums"])
def test_any_dtype_and_any_buffer_will_do(verify):
    with stage(dtype="float32", bucket_bytes=1 << 20, verify=verify) as here:
        assert here.push() == here.push(2) == ""
        assert_holds(here.servers[0], expected(2, torch.float32))


def test_when_the_servers_change_the_group_does_too():
    with stage(2) as here:
        assert here.push() == ""
        (gone,) = here.clients[1:]
        here.clients.remove(gone)
        assert here.push(2) == ""
        assert_holds(here.servers[0], expected(2))
        assert_holds(here.servers[1], expected(1))
        here.clients.append(gone)
        assert here.push(3) == ""
        assert_holds(here.servers[1], expected(3))


@pytest.mark.parametrize("kind", [ReshardTransport, IpcShardsTransport])
def test_a_server_that_joins_during_a_push_waits_for_the_next(kind):
    with stage(2, kind=kind) as here:
        (joining,) = here.clients[1:]
        first, other = here.servers
        moments = ["/init_weights_update_group", *dict.fromkeys(PUSH)]
        for number, moment in enumerate(moments, start=1):
            here.clients[:] = here.clients[:1]

            def join(path: str, moment: str = moment) -> None:
                if path == moment and joining not in here.clients:
                    here.clients.append(joining)

            first.meanwhile = join
            assert here.push(number) == "", moment
            assert joining in here.clients
            assert_holds(first, expected(number))
            # It was neither paused nor resumed, and has its own weights by their own name.
            assert other.calls == [] and other.version == "default"
        first.meanwhile = lambda path: None
        assert here.push(9) == ""
        assert first.version == other.version
        for server in here.servers:
            assert_holds(server, expected(9))


def test_a_receiver_that_dies_in_the_middle_is_named_and_nobody_serves():
    with stage(2) as here:
        here.servers[1].faults = ["dies in the middle"]
        started = time.monotonic()
        assert "New weights did not arrive whole" in here.push()
        assert time.monotonic() - started < TIMEOUT_S  # its connections are closed, so nobody waits for the deadline
        assert here.failed == here.clients[1:]
        assert not any(map(serves, here.servers))
        here.clients.pop()  # as the fleet does with a server that failed
        assert here.push(2) == ""
        assert_holds(here.servers[0], expected(2))


def test_a_sender_that_dies_leaves_no_server_to_serve():
    with stage(2) as here:
        here.sender_dies = True
        assert "New weights did not arrive whole" in here.push()
        assert here.failed == []  # no server is at fault
        assert not any(map(serves, here.servers))
        assert [server.version for server in here.servers] == ["default"] * 2


def test_sends_that_are_stuck_end_at_the_deadline():
    with stage(2, timeout_s=2.0) as here:
        here.servers[1].faults, here.servers[1].late_s = ["hangs in the middle"], 60.0
        started = time.monotonic()
        assert "did not answer within 2 s" in here.push()  # which waits for the other rank of the trainer too
        assert time.monotonic() - started < 10.0
        assert here.failed == here.clients[1:]  # the only one that does not answer
        assert not any(map(serves, here.servers))
        here.servers[1].ranks[0].end()
        here.clients.pop()
        assert here.push(2) == ""
        assert_holds(here.servers[0], expected(2))


def test_a_server_that_was_started_anew_takes_the_next_push_and_nobody_is_blamed():
    with stage(2) as here:
        assert here.push() == ""
        server, other = here.servers[1], Rank(ServerRank, SHAPES, "bfloat16")
        with ended(other):
            first, server.ranks = server.ranks, [other]
            first[0].end()
            started = time.monotonic()
            assert "has reported nothing: the server was started anew" in here.push(2)
            assert time.monotonic() - started < TIMEOUT_S and here.failed == []
            assert here.push(3) == ""
            for each in here.servers:
                assert_holds(each, expected(3))


def test_a_rank_of_the_trainer_that_does_not_agree_is_named_and_no_server_is_blamed():
    with stage(2, timeout_s=2.0) as here:
        assert here.push() == ""
        before = held(here.servers[0])
        here.sender.tell = lambda what, command, dies: here.sender.__class__.tell(here.sender, "hold", {})
        assert "rank 1 of the trainer did not agree within 2 s" in here.push(2)
        assert here.failed == []
        assert_holds(here.servers[0], before)


@pytest.mark.parametrize("kind", [ReshardTransport, IpcShardsTransport])
def test_what_the_board_holds_does_not_grow(kind):
    with stage(2, kind=kind) as here:
        numbers = []
        for number in range(1, 5):
            assert here.push(number) == ""
            numbers.append(here.num_keys())
        assert numbers[1:] == numbers[1:2] * 3


def test_a_late_receiver_writes_nothing_afterwards():
    with stage(2, timeout_s=3.0) as here:
        assert here.push() == ""  # a server that has been late before has a group
        here.servers[1].faults, here.servers[1].late_s = ["is late"], 5.0
        before = held(here.servers[1])
        assert f"{here.clients[1].address} did not agree within 3 s" in here.push(2)
        assert here.failed == here.clients[1:]
        time.sleep(3.0)
        assert_holds(here.servers[1], before)
        assert_holds(here.servers[0], before)  # nobody begins before all are there
        here.servers[1].faults = [""]
        assert here.push(3) == ""
        for server in here.servers:
            assert_holds(server, expected(3))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("a.w", (ROWS + 1, COLUMNS), r"has (6, 50) as a.w, and the plan has (7, 50)"),
        ("a.bias", (3,), "has no such parameter as a.bias, and the plan has (3,)"),
    ],
)
def test_a_server_of_another_shape_is_refused_before_anything_is_sent(name, shape, words):
    with stage(plan=Plan(1, SHAPES | {name: shape})) as here:
        assert words in here.push()
        assert here.failed == []  # another push would not help
        assert set(torch.cat([each.flatten() for each in held(here.servers[0]).values()]).tolist()) == {7.0}
        assert "/pause_generation" not in here.servers[0].calls and not here.servers[0].is_open


def test_a_plan_that_does_not_fit_is_refused_by_the_receiver_before_it_writes():
    class Wrong(Plan):
        def pieces(self) -> Iterator[Piece]:
            for piece in super().pieces():
                yield (
                    replace(piece, target=replace(piece.target, start=(1,), stop=(COLUMNS + 1,)))
                    if piece.source.name == "N"
                    else piece
                )

    with stage(2, plan=Wrong(2)) as here:
        assert "ValueError: a.n has no block from [1] to [51]" in here.push()
        assert here.failed and set(here.failed) <= set(here.clients)  # those that have reported so far
        for server in here.servers:
            assert set(held(server)["a.w"].flatten().tolist()) == {7.0}
            assert not serves(server)


def test_a_flipped_bit_is_found():
    with stage(2) as here:
        here.servers[0].faults = ["flips a bit"]
        assert "holds other bits than were sent in 1 tensors, such as " in here.push()
        assert here.failed == here.clients[:1]
        assert not any(map(serves, here.servers)) and here.servers[0].version == "default"
        here.servers[0].faults = [""]
        assert here.push() == ""


def test_a_server_that_lost_a_peer_is_not_at_fault():
    with stage(2) as here:
        here.servers[1].faults = ["loses a peer"]
        assert f"{here.clients[1].address}: PeerLostError: Connection closed by peer" in here.push()
        assert here.failed == [] and not any(map(serves, here.servers))
        here.servers[1].faults = [""]
        assert here.push(2) == ""


def test_a_receiver_without_memory_for_messages_refuses_before_anybody_writes():
    with stage(2) as here:
        before = held(here.servers[0])
        here.servers[1].faults = ["has no memory"]
        assert f"{here.clients[1].address}: OutOfMemoryError: no memory" in here.push()
        assert here.failed == here.clients[1:]
        for server in here.servers:
            assert_holds(server, before)
        here.servers[1].faults = [""]
        assert here.push(2) == ""


def test_a_receiver_that_cannot_write_takes_the_rest_and_reports_it():
    with stage(2) as here:
        here.servers[0].faults = ["cannot write"]
        started = time.monotonic()
        assert "OutOfMemoryError: no memory" in here.push()
        assert time.monotonic() - started < TIMEOUT_S
        assert here.failed == here.clients[:1]


def test_servers_of_different_layouts_are_refused():
    with stage(2) as here:
        here.clients[1].connection.capabilities = Capabilities(tensor_parallel=2)
        assert "start equal servers, or set weight_sync.transport=broadcast" in here.push()


def test_experts_whose_order_is_not_known_are_refused():
    with stage() as here:
        here.clients[0].connection.capabilities = Capabilities(reorders_experts=True)
        assert "start it with --moe-runner-backend triton" in here.push()
        assert not serves(here.servers[0])

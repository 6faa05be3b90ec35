"""Servers that die, stall, send invalid replies or come back: every request is answered once, or fails."""

from __future__ import annotations

import asyncio
import time

import pytest

from megacov.errors import DataError, RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.connection import RequestRefusedError, UnreachableError
from megacov.rollout.client.wire import GenerateRequest
from megacov.rollout.fleet.fleet import ServersWaitError
from tests.support.scripted_fleet import (
    INFO,
    Dead,
    answer_all,
    answers,
    echo,
    fleet_of,
    generated,
    requests,
    served,
    until,
)
from tests.support.scripted_server import Call, Reply, hang


def test_requests_are_shared_out():
    async def run():
        async with fleet_of(served(echo), served(echo)) as (fleet, calls):
            assert await answers(fleet, 40) == list(range(40))
            assert [generated(each) for each in calls] == [20, 20]
            assert (fleet.num_failovers, fleet.membership.num_restarts) == (0, 0)

    asyncio.run(run())


def test_requests_of_a_lost_server_are_answered_once_by_the_other():
    async def run():
        async with fleet_of(Dead(echo, first=5), served(echo), health_timeout_s=20.0) as (fleet, calls):
            assert await answers(fleet, 40) == list(range(40))
            # Answered requests are not sent again: 40 answers, and each failed request at most twice.
            assert generated(calls[1]) == 35
            assert fleet.num_failovers == 15
            assert len(fleet.membership.serving) == 1

    asyncio.run(run())


def test_a_stalled_server_is_detected_long_before_the_deadline_of_a_request():
    stalled = asyncio.Event()

    async def stall(call: Call) -> Reply:
        if call.path == "/generate":
            stalled.set()
        return await hang(call) if stalled.is_set() else INFO

    async def run():
        async with fleet_of(stall, served(echo), health_timeout_s=0.3) as (fleet, _):
            started = time.monotonic()
            assert await answers(fleet, 10) == list(range(10))
            assert time.monotonic() - started < 25.0
            assert fleet.num_failovers == 5

    asyncio.run(run())


def test_a_server_with_invalid_replies_gets_three_chances():
    async def nonsense(_call: Call) -> Reply:
        return Reply({"text": 3})

    async def run():
        async with fleet_of(served(nonsense), served(echo), watch_s=60.0) as (fleet, calls):
            for each in range(10):
                assert (await fleet.generate(requests(11)[each + 1]))[0].token_ids == (each + 1,)
            assert generated(calls[0]) == 3
            assert len(fleet.membership.serving) == 1

    asyncio.run(run())


def test_a_server_that_comes_back_serves_only_after_it_has_the_current_weights():
    told: list[str] = []
    first = Dead(echo, first=2)

    async def update(client: RolloutClient) -> None:
        assert first.is_dead is False
        told.append(client.address)

    async def run():
        async with fleet_of(first, served(echo), update=update) as (fleet, _):
            assert await answers(fleet, 10) == list(range(10))
            address = fleet.membership.members[0].client.address
            assert fleet.membership.members[0].state == "out"
            assert told == []
            first.is_dead, first.left = False, 1000

            await until(fleet, lambda: len(fleet.membership.serving) == 2)
            assert told == [address]
            assert await answers(fleet, 10) == list(range(10))

    asyncio.run(run())


def test_requests_wait_for_a_server_when_all_are_lost_and_then_fail():
    async def run():
        only = Dead(echo, first=0)
        async with fleet_of(only, start_timeout_s=0.5) as (fleet, _):
            with pytest.raises(RolloutError, match="No rollout server is left: http://127.0.0.1:.* did not answer"):
                await answers(fleet, 1)
        only = Dead(echo, first=0)
        async with fleet_of(only) as (fleet, _):
            waiting = asyncio.create_task(answers(fleet, 5))
            while fleet.membership.serving:
                await asyncio.sleep(0.02)
            only.is_dead, only.left = False, 1000
            assert await waiting == list(range(5))

    asyncio.run(run())


def test_a_refused_request_is_no_failure_of_the_server():
    async def refuse(_call: Call) -> Reply:
        return Reply({"error": {"message": "too long"}}, status=400)

    async def run():
        async with fleet_of(served(refuse), served(refuse)) as (fleet, calls):
            with pytest.raises(RolloutError, match="too long"):
                await answers(fleet, 1)
            with pytest.raises(DataError):
                await fleet.generate(GenerateRequest(input_ids=(500_000,), n=1, max_new_tokens=4))
            assert sum(map(generated, calls)) == 1
            assert len(fleet.membership.serving) == 2

    asyncio.run(run())


def test_a_server_that_failed_an_update_gets_no_request_until_it_has_another():
    updated: list[str] = []

    async def update(client: RolloutClient) -> None:
        updated.append(client.address)

    async def run():
        async with fleet_of(served(echo), served(echo), update=update) as (fleet, calls):
            first, second = fleet.membership.receiving
            assert await fleet.membership.drop_failed({first: RolloutError("half an update")})
            assert fleet.membership.receiving == [second]
            assert await answer_all(fleet, 6)
            assert [generated(each) for each in calls] == [0, 6]
            await until(fleet, lambda: len(fleet.membership.serving) == 2)
            assert updated == [first.address]

    asyncio.run(run())


def test_a_push_that_all_servers_refuse_is_not_repeated():
    async def run():
        async with fleet_of(served(echo), served(echo)) as (fleet, _):
            refusals = {client: RequestRefusedError("no such folder") for client in fleet.membership.receiving}
            assert not await fleet.membership.drop_failed(refusals)
            assert len(fleet.membership.serving) == 2
            # If one server was lost as well, a push to the other may succeed.
            assert await fleet.membership.drop_failed({fleet.membership.receiving[0]: UnreachableError("gone")})

    asyncio.run(run())


def test_without_a_copy_of_the_weights_a_lost_server_waits_for_the_next_push():
    async def run():
        async with fleet_of(served(echo), served(echo)) as (fleet, calls):
            fleet.membership.bring_up_to_date = None
            first, second = fleet.membership.receiving
            await fleet.membership.drop_failed({first: RolloutError("half an update")})
            await until(fleet, lambda: fleet.membership.receiving == [first, second])
            assert fleet.membership.serving == [second]
            assert "/end_weight_update" in [call.path for call in calls[0]]
            await fleet.membership.drop_failed({second: RolloutError("lost as well")})
            with pytest.raises(ServersWaitError):
                await fleet.generate(requests(1)[0])
            assert generated(calls[0]) == 0
            await fleet.membership.admit()
            assert (await fleet.generate(requests(2)[1]))[0].token_ids == (1,)

    asyncio.run(run())

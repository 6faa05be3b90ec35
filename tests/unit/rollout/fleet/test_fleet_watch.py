"""A fleet does more than send requests: it watches servers, counts their failures, and remembers prefixes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.wire import GenerateRequest, Prefix
from megacov.rollout.fleet import fleet as fleet_module
from megacov.rollout.fleet.fleet import Fleet
from tests.support.scripted_fleet import Dead, answers, echo, fleet_of, generated, requests, served
from tests.support.scripted_server import Call, Reply, hang


def test_an_error_in_the_watch_ends_the_work():
    async def odd(_client: RolloutClient) -> None:
        raise ZeroDivisionError

    async def run():
        only = Dead(echo, first=0)
        async with fleet_of(only, update=odd) as (fleet, _):
            waiting = asyncio.create_task(answers(fleet, 1))
            while fleet.membership.serving:
                await asyncio.sleep(0.02)
            only.is_dead, only.left = False, 1000
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(waiting, 10.0)
            assert asyncio.all_tasks() == {asyncio.current_task()} | serving_tasks()

    asyncio.run(run())


def serving_tasks() -> set[asyncio.Task[Any]]:
    """Tasks of the scripted servers."""
    return {task for task in asyncio.all_tasks() if "scripted_server" in task.get_coro().__qualname__}


def test_a_cancelled_work_leaves_nothing_behind():
    async def run():
        async with fleet_of(served(hang), served(hang)) as (fleet, _):
            waiting = asyncio.create_task(answers(fleet, 3))
            await asyncio.sleep(0.2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert asyncio.all_tasks() == {asyncio.current_task()} | serving_tasks()
            assert [member.under_way for member in fleet.membership.members] == [0, 0]

    asyncio.run(run())


@pytest.mark.parametrize("reply", [Reply(status=503), Reply(status=404), Reply({"text": 3})])
def test_an_occasional_invalid_reply_loses_no_server(reply):
    async def sometimes(call: Call) -> Reply:
        return reply if call.body["input_ids"][0] % 3 == 2 else await echo(call)

    async def run():
        async with fleet_of(served(sometimes), served(echo)) as (fleet, _):
            for each in range(1, 10):
                fleet.membership.members[1].under_way += 1  # so that the first is asked first
                assert (await fleet.generate(requests(10)[each]))[0].token_ids == (each,)
            assert len(fleet.membership.serving) == 2
            assert fleet.num_failovers == 3

    asyncio.run(run())


def test_failures_of_a_server_that_was_lost_do_not_count_against_it_when_it_is_back():
    async def run():
        async with fleet_of(served(hang), served(echo), watch_s=60.0) as (fleet, _):
            first = fleet.membership.members[0]
            fleet.membership.members[1].under_way += 50
            waiting = [asyncio.create_task(fleet.generate(request)) for request in requests(5)]
            await asyncio.sleep(0.2)
            assert first.under_way == 5
            first.lose("lost", max_restarts=0)
            first.enter("serving")
            fleet.membership.members[1].under_way -= 50
            assert len(await asyncio.gather(*waiting)) == 5
            assert (first.state, first.failures) == ("serving", 0)

    asyncio.run(run())


@pytest.mark.parametrize("status", [429, 503])
def test_an_overloaded_server_is_asked_again_and_not_lost(status: int, monkeypatch):
    monkeypatch.setattr(fleet_module, "_BUSY_PAUSE_S", 0.02)
    turned_away = 0

    async def busy(call: Call) -> Reply:
        nonlocal turned_away
        turned_away += 1
        return Reply(status=status) if turned_away < 100 else await echo(call)

    async def run():
        # More refusals than a request has attempts or a server has chances.
        async with fleet_of(served(busy), make_client=impatient) as (fleet, _):
            assert await answers(fleet, 4) == list(range(4))
            assert [member.why for member in fleet.membership.members] == [""]
            assert fleet.num_failovers == 0

    def impatient(address: str) -> RolloutClient:
        return RolloutClient(address, vocab_size=100_000, max_retries=0, request_timeout_s=20.0)

    asyncio.run(run())


def test_requests_of_one_prefix_go_to_one_server_unless_its_load_is_high():
    async def run():
        async with fleet_of(served(echo), served(echo)) as (fleet, calls):
            prefix = Prefix()
            request = GenerateRequest(input_ids=(1,), n=1, max_new_tokens=4, prefix=prefix)
            first, second = fleet.membership.members
            second.under_way = 1
            await fleet.generate(request)
            assert prefix.address == first.client.address
            first.under_way, second.under_way = 5, 0
            await fleet.generate(request)
            assert list(map(generated, calls)) == [2, 0]
            first.under_way = 20
            await fleet.generate(request)
            assert list(map(generated, calls)) == [2, 1]
            assert prefix.address == second.client.address
            first.under_way = 0
            second.lose("lost", max_restarts=0)
            await fleet.generate(request)
            assert list(map(generated, calls)) == [3, 1]

    asyncio.run(run())


def test_the_watch_does_not_wait_for_a_server_that_a_request_found_lost():
    first = Dead(echo, first=1000)

    async def lose(fleet: Fleet) -> None:
        await asyncio.sleep(0.2)
        fleet.membership.members[0].lose("a request did not reach it", max_restarts=0)
        stalled.clear()
        while len(fleet.membership.serving) < 2:
            await asyncio.sleep(0.01)

    async def stall(call: Call) -> Reply:
        return await hang(call) if stalled.is_set() else await first(call)

    stalled = asyncio.Event()
    stalled.set()

    async def run():
        async with fleet_of(stall, served(echo), health_timeout_s=300.0) as (fleet, _):
            await asyncio.wait_for(fleet.membership.watched(lose(fleet)), 20.0)
            assert len(fleet.membership.serving) == 2

    asyncio.run(run())

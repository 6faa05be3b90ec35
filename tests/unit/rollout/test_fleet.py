"""Servers that are lost, stall, talk nonsense or come back: every request is answered once, or its failure is told."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from megacov.errors import DataError, RolloutError
from megacov.rollout.client import RolloutClient
from megacov.rollout.fleet import Fleet
from megacov.rollout.wire import GenerateRequest, Prefix
from tests.support.scripted_fleet import INFO, fleet_of, served
from tests.support.scripted_server import DROP, Call, Reply, Script, completion, hang


async def echo(call: Call) -> Reply:
    """One completion that tells which prompt it is of."""
    await asyncio.sleep(0.01)
    return Reply(completion([call.body["input_ids"][0]]))


class Dead:
    """Answers until it is told to die, then never again until it lives anew."""

    def __init__(self, generate: Script, *, first: int) -> None:
        self.generate, self.left, self.is_dead = generate, first, False

    async def __call__(self, call: Call) -> Reply:
        if call.path == "/generate":
            self.left -= 1
            self.is_dead = self.is_dead or self.left < 0
        if self.is_dead:
            return DROP
        return await served(self.generate)(call)


def requests(number: int) -> list[GenerateRequest]:
    return [GenerateRequest(input_ids=(each,), n=1, max_new_tokens=4) for each in range(number)]


async def answers(fleet: Fleet, number: int) -> list[int]:
    """The prompt that each answer tells, in the order of the requests."""
    got = await fleet.watched(_all(fleet, number))
    return [completions[0].token_ids[0] for completions in got]


async def _all(fleet: Fleet, number: int) -> list[Any]:
    return await asyncio.gather(*map(fleet.generate, requests(number)))


def generated(calls: list[Call]) -> int:
    return sum(call.path == "/generate" for call in calls)


def test_requests_are_shared_out():
    async def run():
        async with fleet_of(served(echo), served(echo)) as (fleet, calls):
            assert await answers(fleet, 40) == list(range(40))
            assert [generated(each) for each in calls] == [20, 20]
            assert (fleet.num_failovers, fleet.num_restarts) == (0, 0)

    asyncio.run(run())


def test_what_a_lost_server_owes_is_answered_by_the_other_once():
    async def run():
        async with fleet_of(Dead(echo, first=5), served(echo)) as (fleet, calls):
            assert await answers(fleet, 40) == list(range(40))
            # Whatever the first one answered was not asked again: 40 answers, and each failed request twice at most.
            assert generated(calls[1]) == 35
            assert fleet.num_failovers == 15
            assert len(fleet.serving) == 1

    asyncio.run(run())


def test_a_server_that_stalls_is_found_out_long_before_the_deadline_of_a_request():
    stalled = asyncio.Event()

    async def stall(call: Call) -> Reply:
        if call.path == "/generate":
            stalled.set()
        return await hang(call) if stalled.is_set() else INFO

    async def run():
        async with fleet_of(stall, served(echo)) as (fleet, _):
            started = time.monotonic()
            assert await answers(fleet, 10) == list(range(10))
            assert time.monotonic() - started < 5.0
            assert fleet.num_failovers == 5

    asyncio.run(run())


def test_a_server_that_talks_nonsense_gets_three_chances():
    async def nonsense(_call: Call) -> Reply:
        return Reply({"text": 3})

    async def run():
        async with fleet_of(served(nonsense), served(echo), watch_s=60.0) as (fleet, calls):
            for each in range(10):
                assert (await fleet.generate(requests(11)[each + 1]))[0].token_ids == (each + 1,)
            assert generated(calls[0]) == 3
            assert len(fleet.serving) == 1

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
            address = fleet.members[0].client.address
            assert fleet.members[0].state == "out"
            assert told == []
            first.is_dead, first.left = False, 1000

            async def back() -> None:
                while len(fleet.serving) < 2:
                    await asyncio.sleep(0.02)

            await asyncio.wait_for(fleet.watched(back()), 10.0)
            assert told == [address]
            assert await answers(fleet, 10) == list(range(10))

    asyncio.run(run())


def test_requests_wait_for_a_server_when_all_are_lost_and_then_say_so():
    async def run():
        only = Dead(echo, first=0)
        async with fleet_of(only, start_timeout_s=0.5) as (fleet, _):
            with pytest.raises(RolloutError, match="No rollout server is left: http://127.0.0.1:.* did not answer"):
                await answers(fleet, 1)
        only = Dead(echo, first=0)
        async with fleet_of(only) as (fleet, _):
            waiting = asyncio.create_task(answers(fleet, 5))
            while fleet.serving:
                await asyncio.sleep(0.02)
            only.is_dead, only.left = False, 1000
            assert await waiting == list(range(5))

    asyncio.run(run())


def test_what_is_wrong_with_a_request_is_no_failure_of_a_server():
    async def refuse(_call: Call) -> Reply:
        return Reply({"error": {"message": "too long"}}, status=400)

    async def run():
        async with fleet_of(served(refuse), served(refuse)) as (fleet, calls):
            with pytest.raises(RolloutError, match="too long"):
                await answers(fleet, 1)
            with pytest.raises(DataError):
                await fleet.generate(GenerateRequest(input_ids=(500_000,), n=1, max_new_tokens=4))
            assert sum(map(generated, calls)) == 1
            assert len(fleet.serving) == 2

    asyncio.run(run())


def test_servers_that_are_there_are_told_from_those_that_are_not():
    async def run():
        gone = Dead(echo, first=0)
        async with fleet_of(gone, served(echo)) as (fleet, _):
            assert not await fleet.drop_lost()
            gone.is_dead = True
            assert await fleet.drop_lost()
            assert len(fleet.serving) == 1
            assert fleet.may_recover

    asyncio.run(run())


def test_what_goes_wrong_in_the_watch_ends_the_work():
    async def odd(_client: RolloutClient) -> None:
        raise ZeroDivisionError

    async def run():
        only = Dead(echo, first=0)
        async with fleet_of(only, update=odd) as (fleet, _):
            waiting = asyncio.create_task(answers(fleet, 1))
            while fleet.serving:
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
            assert [member.under_way for member in fleet.members] == [0, 0]

    asyncio.run(run())


@pytest.mark.parametrize("reply", [Reply(status=503), Reply(status=404), Reply({"text": 3})])
def test_an_odd_answer_now_and_then_costs_no_server(reply):
    async def sometimes(call: Call) -> Reply:
        return reply if call.body["input_ids"][0] % 3 == 2 else await echo(call)

    async def run():
        async with fleet_of(served(sometimes), served(echo)) as (fleet, _):
            for each in range(1, 10):
                fleet.members[1].under_way += 1  # so that the first is asked first
                assert (await fleet.generate(requests(10)[each]))[0].token_ids == (each,)
            assert len(fleet.serving) == 2
            assert fleet.num_failovers == 3

    asyncio.run(run())


def test_failures_of_a_server_that_was_lost_do_not_count_against_it_when_it_is_back():
    async def run():
        async with fleet_of(served(hang), served(echo), watch_s=60.0) as (fleet, _):
            first = fleet.members[0]
            fleet.members[1].under_way += 50
            waiting = [asyncio.create_task(fleet.generate(request)) for request in requests(5)]
            await asyncio.sleep(0.2)
            assert first.under_way == 5
            first.lose("lost", max_restarts=0)
            first.admit()
            fleet.members[1].under_way -= 50
            assert len(await asyncio.gather(*waiting)) == 5
            assert (first.state, first.failures) == ("serving", 0)

    asyncio.run(run())


def test_requests_of_one_prefix_go_to_one_server_unless_it_has_much_to_do():
    async def run():
        async with fleet_of(served(echo), served(echo)) as (fleet, calls):
            prefix = Prefix()
            request = GenerateRequest(input_ids=(1,), n=1, max_new_tokens=4, prefix=prefix)
            first, second = fleet.members
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

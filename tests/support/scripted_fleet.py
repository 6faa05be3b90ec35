"""A fleet of scripted servers, and requests to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.wire import GenerateRequest
from megacov.rollout.fleet.fleet import Fleet
from megacov.rollout.fleet.member import Member
from megacov.rollout.fleet.membership import Membership
from tests.support.scripted_server import DROP, Call, Reply, Script, completion, scripted_server

VOCAB_SIZE = 100_000
INFO = Reply({"version": "0.5.23", "weight_version": "v1"})


def served(generate: Script) -> Script:
    """A healthy server that answers /generate by the script."""

    async def script(call: Call) -> Reply:
        if call.path == "/generate":
            return await generate(call)
        return INFO

    return script


def make_client(address: str) -> RolloutClient:
    """A client with short deadlines."""
    return RolloutClient(address, vocab_size=VOCAB_SIZE, max_retries=1, request_timeout_s=30.0)


@contextlib.asynccontextmanager
async def fleet_of(
    *scripts: Script,
    update: Callable[[RolloutClient], Awaitable[None]] | None = None,
    make_client: Callable[[str], RolloutClient] = make_client,
    **options: Any,
) -> AsyncIterator[tuple[Fleet, list[list[Call]]]]:
    """A fleet of scripted servers, and the calls that each has received."""

    async def nothing(_client: RolloutClient) -> None:
        return

    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(scripted_server(script)) for script in scripts]
        fleet = Fleet(
            Membership(
                members=[Member(make_client(address)) for address, _ in opened],
                make_client=make_client,
                bring_up_to_date=update or nothing,
                **{"watch_s": 0.05, "health_timeout_s": 2.0, "start_timeout_s": 5.0} | options,
            )
        )
        stack.push_async_callback(fleet.membership.aclose)
        yield fleet, [calls for _, calls in opened]


async def echo(call: Call) -> Reply:
    """Answer with one completion that names its prompt."""
    await asyncio.sleep(0.01)
    return Reply(completion([call.body["input_ids"][0]]))


class Dead:
    """Answers `first` requests and then drops every connection, until `is_dead` is reset."""

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
    """Requests with different prompts."""
    return [GenerateRequest(input_ids=(each,), n=1, max_new_tokens=4) for each in range(number)]


async def answers(fleet: Fleet, number: int) -> list[int]:
    """The prompt that each answer names, in the order of the requests."""
    got = await fleet.membership.watched(answer_all(fleet, number))
    return [completions[0].token_ids[0] for completions in got]


async def answer_all(fleet: Fleet, number: int) -> list[Any]:
    """Answers to `number` requests, without a watch."""
    return await asyncio.gather(*map(fleet.generate, requests(number)))


async def until(fleet: Fleet, condition: Callable[[], bool]) -> None:
    """Watch the fleet until the condition holds."""

    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(fleet.membership.watched(wait()), 30.0)


def generated(calls: list[Call]) -> int:
    """Number of requests to sample."""
    return sum(call.path == "/generate" for call in calls)

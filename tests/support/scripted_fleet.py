"""A fleet of scripted servers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from megacov.rollout.client import RolloutClient
from megacov.rollout.fleet import Fleet
from megacov.rollout.member import Member
from tests.support.scripted_server import Call, Reply, Script, scripted_server

VOCAB_SIZE = 100_000
INFO = Reply({"version": "0.5.23", "weight_version": "v1"})


def served(generate: Script) -> Script:
    """A server that is well, and answers /generate by the script."""

    async def script(call: Call) -> Reply:
        if call.path == "/generate":
            return await generate(call)
        return INFO

    return script


def make_client(address: str) -> RolloutClient:
    """With short deadlines."""
    return RolloutClient(address, vocab_size=VOCAB_SIZE, max_retries=1, request_timeout_s=10.0)


@contextlib.asynccontextmanager
async def fleet_of(
    *scripts: Script,
    update: Callable[[RolloutClient], Awaitable[None]] | None = None,
    make_client: Callable[[str], RolloutClient] = make_client,
    **options: Any,
) -> AsyncIterator[tuple[Fleet, list[list[Call]]]]:
    """A fleet of scripted servers, with what each was asked."""

    async def nothing(_client: RolloutClient) -> None:
        return

    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(scripted_server(script)) for script in scripts]
        fleet = Fleet(
            members=[Member(make_client(address)) for address, _ in opened],
            make_client=make_client,
            bring_up_to_date=update or nothing,
            **{"watch_s": 0.05, "health_timeout_s": 0.3, "start_timeout_s": 5.0} | options,
        )
        stack.push_async_callback(fleet.aclose)
        yield fleet, [calls for _, calls in opened]

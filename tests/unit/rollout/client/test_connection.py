"""What becomes of a request that meets no answer: the error says whether the server was reached, in time."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from megacov.errors import RolloutError
from megacov.rollout.client.connection import Connection, RefusedError, UnreachableError
from tests.support.scripted_server import DROP, Reply, Script, hang, in_turn, scripted_server


def failure_of(script: Script, *, timeout_s: float) -> tuple[RolloutError, list[str]]:
    """The error of a request that is sent once, and the paths that the server saw."""

    async def run() -> tuple[RolloutError, list[str]]:
        async with scripted_server(script) as (address, calls), Connection(address, max_retries=0) as connection:
            with pytest.raises(RolloutError) as caught:
                await connection.send("POST", "/generate", {"n": 1}, timeout_s=timeout_s)
            return caught.value, [call.path for call in calls]

    return asyncio.run(run())


def test_a_server_that_hangs_up_is_unreachable_and_one_that_is_late_is_not() -> None:
    lost, _ = failure_of(in_turn(DROP), timeout_s=5.0)
    late, _ = failure_of(hang, timeout_s=0.3)
    assert isinstance(lost, UnreachableError)
    assert not isinstance(late, UnreachableError)
    assert "took too long" in str(late)


def test_a_redirection_is_refused_since_keys_and_prompts_are_for_one_server() -> None:
    error, paths = failure_of(in_turn(Reply({}, status=307, headers=("location: /elsewhere",))), timeout_s=5.0)
    assert isinstance(error, RefusedError)
    assert "307" in str(error)
    assert paths == ["/generate"]


def test_a_machine_that_does_not_answer_costs_the_time_to_connect_alone() -> None:
    async def run(address: str) -> None:
        async with Connection(address, max_retries=0, connect_timeout_s=0.3) as connection:
            with pytest.raises(UnreachableError, match="took too long"):
                await connection.send("GET", "/health", None, timeout_s=30.0)

    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for waiting in (first, second):  # nobody accepts them, and there is no room for a third
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        started = time.monotonic()
        asyncio.run(run(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        assert time.monotonic() - started < 15.0

"""Running servers at the start: leftovers of a killed run are repaired, and missing servers are left out."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from megacov.errors import RolloutError
from megacov.rollout.client.capabilities import UnusableServerError
from megacov.rollout.client.client import RolloutClient
from tests.support.scripted_fleet import INFO, Dead, answers, echo, fleet_of, served, until
from tests.support.scripted_server import Call, Reply, hang


class LeftInAnUpdate:
    """Left by its trainer paused and inside a weight session, so that it fails health checks."""

    def __init__(self) -> None:
        self.is_open = self.is_paused = True

    async def __call__(self, call: Call) -> Reply:
        match call.path:
            case "/end_weight_update":
                self.is_open = False
            case "/continue_generation":
                self.is_paused = False
            case "/health" | "/generate" if self.is_paused:
                return Reply(status=503)
            case "/generate":
                return await echo(call)
        return INFO


@pytest.mark.parametrize("is_by_disk", [False, True])
def test_a_server_that_a_killed_trainer_left_paused_serves_again(is_by_disk: bool):
    async def resume(client: RolloutClient) -> None:
        await client.resume()

    async def run():
        server = LeftInAnUpdate()
        async with fleet_of(server, served(echo), update=resume) as (fleet, _):
            if not is_by_disk:
                fleet.membership.bring_up_to_date = None
            await fleet.membership.wait_ready()
            assert len(fleet.membership.serving) == 2
            assert await answers(fleet, 10) == list(range(10))
            assert server.is_open is is_by_disk

    asyncio.run(run())


def test_servers_are_awaited_together_and_a_missing_one_is_tried_again():
    async def run():
        late = Dead(echo, first=0)
        late.is_dead = True
        async with fleet_of(late, *[hang] * 5, served(echo), start_timeout_s=2.0) as (fleet, _):
            started = time.monotonic()
            await fleet.membership.wait_ready()
            assert 2.0 <= time.monotonic() - started < 8.0
            assert [member.state for member in fleet.membership.members] == [*["out"] * 6, "serving"]
            assert await answers(fleet, 5) == list(range(5))
            late.is_dead, late.left = False, 1000
            await until(fleet, lambda: len(fleet.membership.serving) == 2)

    asyncio.run(run())


def test_the_fleet_waits_until_a_server_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def run():
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(Reply(INFO.content, headers=("connection: close",)).encode())
            await writer.drain()
            writer.close()

        async with fleet_of(served(echo), make_client=lambda _: client, start_timeout_s=20.0) as (fleet, _):
            waiting = asyncio.create_task(fleet.membership.wait_ready())
            await asyncio.sleep(0.5)
            async with await asyncio.start_server(answer, "127.0.0.1", port):
                await asyncio.wait_for(waiting, 15.0)
            assert len(fleet.membership.serving) == 1

    client = RolloutClient(f"http://127.0.0.1:{port}", vocab_size=10, max_retries=0)
    asyncio.run(run())


def test_without_servers_the_error_names_one_and_a_refusal_is_raised_at_once():
    async def refuse(_call: Call) -> Reply:
        return Reply({"error": "Unauthorized"}, status=401)

    async def run():
        gone = Dead(echo, first=0)
        gone.is_dead = True
        async with fleet_of(gone, gone, start_timeout_s=0.5) as (fleet, _):
            with pytest.raises(RolloutError, match=r"127.0.0.1:\d+ was not ready within 0.5 s: .* did not answer"):
                await fleet.membership.wait_ready()
        async with fleet_of(refuse, served(echo), start_timeout_s=300.0) as (fleet, _):
            with pytest.raises(RolloutError, match="401: Unauthorized"):
                await asyncio.wait_for(fleet.membership.wait_ready(), 20.0)

    asyncio.run(run())


@pytest.mark.parametrize("is_by_disk", [False, True])
def test_an_unusable_server_ends_the_start_and_is_left_out_later(is_by_disk: bool, capsys):
    refused: list[str] = []

    def check(client: RolloutClient) -> None:
        if client.address in refused:
            raise UnusableServerError(f"{client.address} has two copies")

    async def run():
        async with fleet_of(served(echo), served(echo), check=check) as (fleet, _):
            if not is_by_disk:
                fleet.membership.bring_up_to_date = None
            await fleet.membership.wait_ready()
            refused.append(fleet.membership.serving[0].address)
            with pytest.raises(UnusableServerError, match="two copies"):
                await fleet.membership.wait_ready()
            first = fleet.membership.members[0]
            await fleet.membership.drop_failed({first.client: RolloutError("lost")})
            await until(fleet, lambda: "two copies" in first.why)
            assert first.state == "out" and first.client not in fleet.membership.receiving
            refused.clear()
            await until(fleet, lambda: first.client in fleet.membership.receiving)

    asyncio.run(run())
    assert "is lost: http://127.0.0.1" in capsys.readouterr().out

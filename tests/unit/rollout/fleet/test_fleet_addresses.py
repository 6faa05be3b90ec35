"""A changing list of servers: new ones serve once they have the weights, removed ones finish what they have begun."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from megacov.errors import RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.wire import GenerateRequest
from megacov.rollout.fleet.address_file import AddressFile
from megacov.rollout.fleet.fleet import Fleet
from megacov.rollout.fleet.member import Member
from megacov.rollout.fleet.membership import Membership
from tests.support.scripted_fleet import make_client
from tests.support.scripted_server import DROP, Call, Reply, Script, completion, hang, scripted_server

REQUEST = GenerateRequest(input_ids=(1,), n=1, max_new_tokens=4)


class Server:
    """Has no weights at first, and answers when the test allows it."""

    def __init__(self, version: str = "7") -> None:
        self.version = version
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.is_dead = False
        self.sampled_with: list[str] = []

    async def __call__(self, call: Call) -> Reply:
        if self.is_dead:
            return DROP
        if call.path == "/generate":
            self.sampled_with.append(self.version)
            await self.may_answer.wait()
            return Reply(completion([1], version=self.version))
        if call.path == "/update_weights_from_disk":
            self.version = call.body["weight_version"]
            return Reply({"success": True})
        return Reply({"version": "0.5.23", "weight_version": self.version})


async def update(client: RolloutClient) -> None:
    await client.weights.load_from_disk("folder", weight_version="7")


@contextlib.asynccontextmanager
async def following(path: Path, *scripts: Script) -> AsyncIterator[tuple[Fleet, list[str]]]:
    """A fleet that follows the file, which first names one server, and the addresses of all servers."""
    async with contextlib.AsyncExitStack() as stack:
        addresses = [(await stack.enter_async_context(scripted_server(script)))[0] for script in scripts]
        path.write_text(f"{addresses[0]}\n")
        fleet = Fleet(
            Membership(
                members=[Member(make_client(address)) for address in AddressFile(path).read()],
                make_client=make_client,
                bring_up_to_date=update,
                address_file=AddressFile(path),
                watch_s=0.05,
                health_timeout_s=0.5,
                start_timeout_s=5.0,
            )
        )
        fleet.membership.versions.add("7")
        stack.push_async_callback(fleet.membership.aclose)
        yield fleet, addresses


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def watch_until(fleet: Fleet, condition: Callable[[], bool]) -> None:
    await asyncio.wait_for(fleet.membership.watched(until(condition)), 20.0)


def served_by(fleet: Fleet) -> list[str]:
    return [client.address for client in fleet.membership.serving]


def test_a_new_line_is_a_server_that_gets_the_weights_first(tmp_path):
    async def run():
        path = tmp_path / "servers"
        first, second = Server(), Server("default")
        async with following(path, first, second) as (fleet, addresses):
            path.write_text(f"# two of them\n\n{addresses[0]}/  # the first\n{addresses[1]}\n")
            await watch_until(fleet, lambda: len(fleet.membership.serving) == 2)
            assert served_by(fleet) == addresses
            await asyncio.gather(*(fleet.generate(REQUEST) for _ in range(6)))
            assert (first.sampled_with, second.sampled_with) == (["7"] * 3, ["7"] * 3)

    asyncio.run(run())


def test_a_removed_line_is_a_server_that_ends_what_it_has_begun(tmp_path):
    async def run():
        path = tmp_path / "servers"
        first, second = Server(), Server("default")
        async with following(path, first, second) as (fleet, addresses):
            first.may_answer.clear()
            under_way = [asyncio.create_task(fleet.generate(REQUEST)) for _ in range(3)]
            path.write_text(f"{addresses[1]}\n")
            await watch_until(fleet, lambda: served_by(fleet) == addresses[1:])
            assert len(fleet.membership.members) == 2
            assert not any(task.done() for task in under_way)
            await asyncio.gather(*(fleet.generate(REQUEST) for _ in range(4)))
            assert (len(first.sampled_with), len(second.sampled_with)) == (3, 4)
            first.may_answer.set()
            await watch_until(fleet, lambda: len(fleet.membership.members) == 1)
            assert [(await task)[0].token_ids for task in under_way] == [(1,)] * 3
            assert fleet.num_failovers == 0
            # The first server comes back, beside the other.
            first.version = "6"
            path.write_text(f"{addresses[1]}\n{addresses[0]}\n")
            await watch_until(fleet, lambda: served_by(fleet) == addresses[::-1])
            assert first.version == "7"

    asyncio.run(run())


def test_requests_of_a_removed_server_that_dies_go_to_another(tmp_path):
    async def run():
        path = tmp_path / "servers"
        first, second = Server(), Server("default")
        async with following(path, first, second) as (fleet, addresses):
            first.may_answer.clear()
            under_way = asyncio.create_task(fleet.generate(REQUEST))
            path.write_text(f"{addresses[1]}\n")
            await watch_until(fleet, lambda: served_by(fleet) == addresses[1:])
            first.is_dead = True
            await watch_until(fleet, lambda: len(fleet.membership.members) == 1)
            assert (await under_way)[0].token_ids == (1,)
            assert fleet.num_failovers == 1

    asyncio.run(run())


def test_a_removed_dead_server_is_forgotten_and_a_listed_one_awaited(tmp_path):
    async def run():
        path = tmp_path / "servers"
        first, second = Server(), Server()
        async with following(path, first, second) as (fleet, addresses):
            first.is_dead = second.is_dead = True
            await watch_until(fleet, lambda: fleet.membership.members[0].state == "out")
            path.write_text(f"{addresses[1]}\n")
            await watch_until(
                fleet, lambda: [member.client.address for member in fleet.membership.members] == addresses[1:]
            )
            waiting = asyncio.create_task(fleet.membership.watched(fleet.generate(REQUEST)))
            await asyncio.sleep(0.3)
            second.is_dead = False
            assert (await asyncio.wait_for(waiting, 20.0))[0].token_ids == (1,)

    asyncio.run(run())


def test_an_unusable_file_changes_nothing_and_is_reported_once(tmp_path, capsys):
    async def run():
        path = tmp_path / "servers"
        async with following(path, Server(), Server("default")) as (fleet, addresses):
            for text in ("# nothing\n", "10.0.0.5:30000\n", f"{addresses[1]}\nhttp://8.8.8.8:1\n", None):
                path.write_text(text) if text is not None else path.unlink()
                await fleet.membership.watched(asyncio.sleep(0.3))
                assert served_by(fleet) == addresses[:1]
            path.write_text("".join(f"{address}\n" for address in addresses))
            await watch_until(fleet, lambda: len(fleet.membership.serving) == 2)

    asyncio.run(run())
    lines = [line for line in capsys.readouterr().out.splitlines() if "stay as they are" in line]
    words = ("names no server", "is not a URL", "leads to the public address 8.8.8.8", "cannot be read: No such file")
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))


@pytest.mark.parametrize("host", ["8.8.8.8", "rollouts.example.com"])
def test_a_host_name_of_a_public_address_is_refused(host, monkeypatch):
    real = socket.getaddrinfo

    def look_up(name, *args, **options):
        return real("8.8.8.8" if name == "rollouts.example.com" else name, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def run():
        async with RolloutClient(f"http://{host}:30000", vocab_size=4) as client:
            with pytest.raises(RolloutError, match="leads to the public address 8.8.8.8 without TLS"):
                await client.is_healthy(5.0)

    asyncio.run(run())


def test_a_host_name_of_a_private_address_is_accepted():
    async def run():
        async with scripted_server(Server()) as (address, _):
            async with RolloutClient(address.replace("127.0.0.1", "localhost"), vocab_size=4) as client:
                assert await client.is_healthy(5.0)
            async with RolloutClient("http://no-such-host.invalid:1", vocab_size=4, max_retries=0) as client:
                assert not await client.is_healthy(5.0)
                with pytest.raises(RolloutError, match="did not answer .* cannot be looked up"):
                    await client.generate(REQUEST)

    asyncio.run(run())


def test_a_removed_server_that_hangs_is_given_up(tmp_path):
    async def run():
        path, is_hanging = tmp_path / "servers", False

        async def hangs(call: Call) -> Reply:
            return await hang(call) if is_hanging or call.path == "/generate" else await second(call)

        second = Server()
        async with following(path, hangs, second) as (fleet, addresses):
            under_way = asyncio.create_task(fleet.generate(REQUEST))
            await asyncio.sleep(0.1)
            path.write_text(f"{addresses[1]}\n")
            is_hanging = True
            await watch_until(
                fleet, lambda: [member.client.address for member in fleet.membership.members] == addresses[1:]
            )
            assert (await under_way)[0].token_ids == (1,)

    asyncio.run(run())

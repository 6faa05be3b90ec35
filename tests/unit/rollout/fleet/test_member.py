"""Servers that this process started: lost ones hold no memory, and restarts in a row are limited."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from megacov.rollout.client.client import RolloutClient
from megacov.rollout.fleet import member as member_module
from megacov.rollout.fleet.member import Member
from megacov.rollout.fleet.server_process import ServerProcess
from tests.support.scripted_fleet import fleet_of


class Sleeper(ServerProcess):
    """A process that never listens."""

    def look_for_address(self) -> bool:
        return False

    def settle(self) -> None:
        pass

    def _launch(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "600"])

    def _clean_up(self) -> None:
        pass


def member_of(folder: Path) -> Member:
    """A member whose process runs."""
    server = Sleeper("sleeper", folder / "log", 60.0)
    server.start()
    return Member(RolloutClient("http://127.0.0.1:9", vocab_size=4), server)


async def ended(member: Member) -> None:
    assert member.server is not None
    while member.server.pid is not None:
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("max_restarts", "state"), [(3, "out"), (0, "gone")])
def test_a_lost_server_holds_nothing(tmp_path: Path, max_restarts: int, state: str):
    async def run():
        member = member_of(tmp_path)
        member.lose("hangs", max_restarts=max_restarts)
        assert member.state == state
        assert ("given up after 0 restarts in a row" in member.why) == (state == "gone")
        await asyncio.wait_for(ended(member), 20.0)

    asyncio.run(run())


def test_a_starting_server_frees_its_memory_for_the_trainer(tmp_path: Path):
    async def run():
        async with fleet_of() as (fleet, _):
            lost, starting, serving = fleet.membership.members[:] = [member_of(tmp_path) for _ in range(3)]
            try:
                lost.lose("hangs", max_restarts=3)
                starting.state, starting.restarts_in_a_row = "starting", 1
                await asyncio.wait_for(fleet.membership.release_lost(), 20.0)
                assert lost.server.pid is None and starting.server.pid is None
                assert (starting.state, starting.restarts_in_a_row) == ("out", 0)
                assert serving.server.pid is not None
                # The restart still works afterwards.
                await starting.has_restarted(
                    starting.server, lambda _: starting.client, start_timeout_s=60.0, health_timeout_s=1.0
                )
                assert starting.state == "starting" and starting.server.pid is not None
            finally:
                for member in fleet.membership.members:
                    await asyncio.to_thread(member.server.stop)

    asyncio.run(run())


@pytest.mark.parametrize(("steady_s", "state"), [(0.0, "out"), (3600.0, "gone")])
def test_only_restarts_in_a_row_are_counted(tmp_path: Path, monkeypatch, steady_s: float, state: str):
    monkeypatch.setattr(member_module, "_STEADY_S", steady_s)

    async def run():
        member = member_of(tmp_path)
        for _ in range(2):
            member.restarts_in_a_row += 1
            member.enter("serving")
            member.lose("a hiccup", max_restarts=2)
        assert member.state == state
        await asyncio.wait_for(ended(member), 20.0)

    asyncio.run(run())

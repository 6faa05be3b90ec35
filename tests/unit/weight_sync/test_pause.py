"""A pause in place ends before a server's watchdog does: it becomes one by retract, whichever transport pushes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megacov.rollout import RolloutClient
from megacov.weight_sync import DiskTransport, ServersFailedError, SessionSettings, TensorTransport, WeightTransport
from tests.support.scripted_server import Call, Reply, hang, scripted_clients

WATCHDOG_S = 0.4


class Server:
    """Notes the calls that matter here, and the mode of each pause."""

    def __init__(self, *, slow: str = "", hangs: str = "") -> None:
        self.slow, self.hangs = slow, hangs
        self.calls: list[str] = []

    async def __call__(self, call: Call) -> Reply:
        if call.path == "/pause_generation":
            self.calls.append(call.body["mode"])
        elif call.path in ("/continue_generation", "/flush_cache"):
            self.calls.append(call.path)
        if call.path == self.hangs:
            await hang(call)
        if call.path == self.slow:
            await asyncio.sleep(0.6 * WATCHDOG_S)
        return Reply({"success": True, "weight_version": "1", "new_version": "1"})


def _transport(kind: str, clients: list[RolloutClient], run: Any, folder: Path) -> WeightTransport:
    if kind == "disk":
        (folder / "config.json").write_text("{}")
        return DiskTransport(clients, run=run, source_model=folder, directory=folder / "weights", pause_mode="in_place")
    settings = SessionSettings(bucket_bytes=16, timeout_s=20.0, pause_mode="in_place")
    return TensorTransport(clients, run=run, settings=settings)


def _push(
    server: Server, folder: Path, *, kind: str = "ipc", pushes: int = 1, watchdog_s: float | None, s: float = 0.0
):
    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(4)
        time.sleep(s)
        yield "b", torch.ones(4)

    with scripted_clients(server) as (clients, run):
        connection = clients[0].connection
        connection.capabilities = replace(connection.capabilities, watchdog_s=watchdog_s)
        transport = _transport(kind, clients, run, folder)
        for _ in range(pushes):
            transport.push(1, weights())


RETRACTED = ["in_place", "retract", "/flush_cache", "/continue_generation"]


def test_a_pause_that_gets_long_while_weights_are_gathered_becomes_one_by_retract(tmp_path):
    server = Server()
    _push(server, tmp_path, watchdog_s=WATCHDOG_S, s=0.6 * WATCHDOG_S)
    assert server.calls == RETRACTED


@pytest.mark.parametrize(("kind", "slow"), [("disk", "/update_weights_from_disk"), ("ipc", "/end_weight_update")])
def test_after_a_long_pause_the_next_push_retracts_from_its_start(tmp_path, kind, slow):
    server = Server(slow=slow)
    _push(server, tmp_path, kind=kind, pushes=2, watchdog_s=WATCHDOG_S)
    assert server.calls == [*RETRACTED, "retract", "/flush_cache", "/continue_generation"]


@pytest.mark.parametrize("watchdog_s", [None, 60.0])
def test_a_short_pause_keeps_the_cache(tmp_path, watchdog_s):
    server = Server()
    _push(server, tmp_path, pushes=2, watchdog_s=watchdog_s, s=0.1)
    assert server.calls == ["in_place", "/continue_generation"] * 2


@pytest.mark.parametrize(("kind", "hangs"), [("disk", "/update_weights_from_disk"), ("ipc", "/end_weight_update")])
def test_a_call_ends_with_the_watchdog_and_servers_that_stay_paused_are_retracted(tmp_path, kind, hangs):
    server, other = Server(hangs=hangs), Server()
    started = time.monotonic()
    with scripted_clients(server, other) as (clients, run):
        for client in clients:
            client.connection.capabilities = replace(client.connection.capabilities, watchdog_s=2.0)
        transport = _transport(kind, clients, run, tmp_path)
        with pytest.raises(ServersFailedError, match="did not answer within 2 s"):
            transport.push(1, [("a", torch.ones(4))])
        assert time.monotonic() - started < 15.0
        assert other.calls == ["in_place", "retract"]
        server.hangs, other.calls = "", []
        transport.push(1, [("a", torch.ones(4))])
    assert other.calls == ["retract", "/flush_cache", "/continue_generation"], (
        "the next push would fail in the same way"
    )

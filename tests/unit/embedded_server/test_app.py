"""Requests that overlap: pauses, aborts and updates while others are being served, over the routes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from megacov.embedded_server.engine import Engine
from megacov.embedded_server.thread import EngineThread
from tests.support.embedded import application_and_engine, make_engine, num_tokens_of
from tests.support.tiny_model import make_tiny_model
from tests.unit.embedded_server.test_contract import assert_same_shape, load

LONG = 480


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Two models with room for long completions."""
    root = tmp_path_factory.mktemp("models")
    first, second = (make_tiny_model(root / str(seed), seed=seed, context_length=512) for seed in (0, 1))
    return first, second


def serve(folders: tuple[Path, Path], test: Callable[[httpx.AsyncClient, Engine], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60.0), application_and_engine(folders[0]) as (client, engine):
            await test(client, engine)

    asyncio.run(run())


async def start_long_request(
    client: httpx.AsyncClient, engine: Engine, rid: str = "victim"
) -> asyncio.Task[httpx.Response]:
    """Start a request, and return once it has some of its tokens."""
    params = {"max_new_tokens": LONG, "ignore_eos": True, "temperature": 1.0}
    body = {"rid": rid, "input_ids": [5, 6, 7], "sampling_params": params, "return_logprob": True}
    task = asyncio.create_task(client.post("/generate", json=body))
    while not num_tokens_of(engine, rid):
        await asyncio.sleep(0.001)
    return task


async def start_short_request(client: httpx.AsyncClient) -> asyncio.Task[httpx.Response]:
    body = {"input_ids": [5], "sampling_params": {"max_new_tokens": 2, "ignore_eos": True}}
    task = asyncio.create_task(client.post("/generate", json=body))
    await asyncio.sleep(0.2)
    return task


async def post(client: httpx.AsyncClient, path: str, body: object) -> httpx.Response:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response


def spans_of(reply: dict) -> list[str]:
    return [span["version"] for span in reply["meta_info"]["weight_versions"]]


def test_a_pause_that_aborts(folders):
    async def test(client, engine):
        victim = await start_long_request(client, engine)
        await post(client, "/pause_generation", {"mode": "abort"})
        reply = (await victim).json()
        capture = load("pause_abort_victim")
        assert_same_shape(reply, capture["response"])
        assert reply["meta_info"]["finish_reason"] == capture["response"]["meta_info"]["finish_reason"]
        assert 0 < len(reply["output_ids"]) < LONG
        assert len(reply["meta_info"]["output_token_logprobs"]) == len(reply["output_ids"])
        late = await start_short_request(client)
        assert not late.done()
        await post(client, "/continue_generation", {})
        assert (await late).json()["meta_info"]["finish_reason"]["type"] == "length"

    serve(folders, test)


def test_a_pause_that_retracts_lets_new_weights_in(folders):
    async def test(client, engine):
        victim = await start_long_request(client, engine)
        await post(client, "/pause_generation", {"mode": "retract"})
        late = await start_short_request(client)
        await post(client, "/flush_cache", {})
        await post(client, "/update_weights_from_disk", {"model_path": str(folders[1]), "weight_version": "w1"})
        assert (await client.get("/model_info")).json()["weight_version"] == "w1"
        assert not victim.done() and not late.done()
        await post(client, "/continue_generation", {})
        reply = (await victim).json()
        assert spans_of(reply) == ["default", "w1"]
        assert reply["meta_info"]["num_retractions"] == 1
        assert reply["meta_info"]["completion_tokens"] == LONG
        assert spans_of((await late).json()) == ["w1"]

    serve(folders, test)


def test_a_pause_in_place_keeps_the_cache(folders):
    async def test(client, engine):
        victim = await start_long_request(client, engine)
        await post(client, "/pause_generation", {"mode": "in_place"})
        assert (await client.post("/flush_cache")).text == load("flush_cache_while_busy")["response"]
        update = {"model_path": str(folders[1]), "weight_version": "w1"}
        refused = await client.post("/update_weights_from_disk", json=update)
        assert refused.status_code == 400 and not refused.json()["success"]
        await post(client, "/update_weights_from_disk", {**update, "flush_cache": False})
        await post(client, "/continue_generation", {})
        reply = (await victim).json()
        assert spans_of(reply) == ["default", "w1"]
        assert reply["meta_info"]["num_retractions"] == 0

    serve(folders, test)


def test_health_waits_for_the_end_of_a_pause(folders):
    async def test(client, engine):
        await post(client, "/pause_generation", {})
        health = asyncio.create_task(client.get("/health"))
        await asyncio.sleep(0.3)
        assert not health.done()
        assert (await client.get("/ready")).status_code == 200
        await post(client, "/continue_generation", {})
        assert (await health).status_code == 200

    serve(folders, test)


def test_an_update_without_a_pause_lets_running_requests_end(folders):
    async def test(client, engine):
        victim = await start_long_request(client, engine)
        await post(client, "/update_weights_from_disk", {"model_path": str(folders[1]), "weight_version": "w1"})
        assert spans_of((await victim).json()) == ["default"]
        assert spans_of((await (await start_short_request(client))).json()) == ["w1"]

    serve(folders, test)


def test_an_abort_ends_one_request(folders):
    async def test(client, engine):
        victim, other = await start_long_request(client, engine), await start_long_request(client, engine, "other")
        duplicate = await client.post("/generate", json={"rid": "victim", "input_ids": [5]})
        assert duplicate.status_code == 400 and "Duplicate" in duplicate.text
        await post(client, "/abort_request", {"rid": "victim"})
        reply = (await victim).json()
        capture = load("abort_by_rid_victim")["response"]
        assert_same_shape(reply, capture)
        assert reply["meta_info"]["finish_reason"] == capture["meta_info"]["finish_reason"]
        assert (await other).json()["meta_info"]["finish_reason"]["type"] == "length"

    serve(folders, test)


def test_a_new_version_aborts_running_requests_by_default(folders):
    async def test(client, engine):
        victim = await start_long_request(client, engine)
        await post(client, "/update_weight_version", {"new_version": "a", "abort_all_requests": False})
        await post(client, "/update_weight_version", {"new_version": "b"})
        reply = (await victim).json()
        assert reply["meta_info"]["finish_reason"]["type"] == "abort"
        assert spans_of(reply)[0] == "default" and "b" not in spans_of(reply)
        assert (await client.get("/model_info")).json()["weight_version"] == "b"

    serve(folders, test)


def test_a_request_whose_client_is_gone_is_aborted(folders):
    async def test(client, engine):
        await post(client, "/pause_generation", {"mode": "in_place"})
        gone = await start_short_request(client)
        gone.cancel()
        await asyncio.wait([gone])
        await post(client, "/continue_generation", {})
        victim = await start_long_request(client, engine)
        victim.cancel()
        await asyncio.wait([victim])
        # The engine is idle long before the request could have finished: a flush is refused while anything runs.
        await post(client, "/flush_cache", {})
        assert not engine.has_work

    serve(folders, test)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_is_reported(served):
    died = threading.Event()
    thread = EngineThread(make_engine(served), num_threads=1, on_death=died.set)
    thread.start()
    thread.post(lambda: 1 // 0)
    assert died.wait(10.0)
    assert not thread.stop(10.0)

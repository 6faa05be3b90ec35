"""Weight calls against recordings of real servers: the requests are equal, and every reply is understood."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from megacov.errors import RolloutError
from megacov.rollout.client.capabilities import read_capabilities
from megacov.rollout.client.client import RolloutClient
from megacov.types import WeightBucket, WeightGroup
from tests.support.scripted_server import Reply, in_turn, scripted_server

CAPTURES = Path(__file__).parents[3] / "captures"
VERSIONS = ("0.5.21", "0.5.23")

Act = Callable[[RolloutClient], Awaitable[Any]]


def talk(act: Act, reply: Reply, *, version: str = "0.5.23") -> tuple[Any, list]:
    """Act on a client whose server repeats one reply; an error is returned like a result."""

    async def run():
        async with (
            scripted_server(in_turn(reply)) as (address, calls),
            RolloutClient(address, vocab_size=4, request_timeout_s=5.0) as client,
        ):
            client.connection.capabilities = read_capabilities({"version": version}, server=address)
            try:
                result = await act(client)
            except RolloutError as error:
                result = error
            return result, calls

    return asyncio.run(run())


def group_of(body: dict[str, Any]) -> WeightGroup:
    return WeightGroup(name=body["group_name"], **{key: body[key] for key in body if key != "group_name"})


def receive(client: RolloutClient, body: dict[str, Any]) -> Awaitable[None]:
    bucket = WeightBucket(
        names=tuple(body["names"]),
        dtypes=tuple(body["dtypes"]),
        shapes=tuple(map(tuple, body["shapes"])),
        is_flattened="load_format" in body,
    )
    version = body.get("weight_version")
    return client.weights.receive_broadcast(bucket, group_name=body["group_name"], weight_version=version)


# Capture -> how to send its request, and the end of the error message if the server refused.
CASES: dict[str, tuple[Callable[[RolloutClient, dict[str, Any]], Awaitable[Any]], str]] = {
    "begin_weight_update": (lambda client, _: client.weights.begin(), ""),
    "begin_weight_update_twice": (lambda client, _: client.weights.begin(), "session is already open; call end_"),
    "end_weight_update": (lambda client, _: client.weights.end(), ""),
    "end_weight_update_twice": (lambda client, _: client.weights.end(), "no weight-update session is open"),
    "init_weights_update_group": (lambda client, body: client.weights.init_group(group_of(body)), ""),
    "update_weights_from_distributed": (receive, ""),
    "update_weights_from_distributed_bucket": (receive, ""),
    # The server reports success: the sender must know the names.
    "update_weights_from_distributed_unknown_name": (receive, ""),
    "update_weights_from_distributed_bad_shape": (receive, "partially updated. Please discard the whole weights."),
    "distributed_without_begin": (receive, "must run between begin_weight_update() and end_weight_update()"),
    "destroy_weights_update_group": (lambda client, _: client.weights.destroy_group("rl_update"), ""),
    "destroy_weights_update_group_missing": (
        lambda client, body: client.weights.destroy_group(body["group_name"]),
        "The group to be destroyed does not exist.",
    ),
    "update_weight_version": (lambda client, body: client.weights.set_version(body["new_version"]), ""),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_requests_and_replies_are_those_of_a_real_server(name, version):
    capture = json.loads((CAPTURES / f"sglang_{version}" / f"{name}.json").read_text())
    send, sentence = CASES[name]
    asked = capture["request"]["body"]
    reply = Reply(capture["response"], status=capture["status"])
    result, (call,) = talk(lambda client: send(client, asked), reply, version=version)
    assert call.path == capture["request"]["path"]
    # The client may spell out defaults.
    assert {key: call.body.get(key) for key in asked} == asked
    if sentence:
        assert isinstance(result, RolloutError)
        assert sentence in str(result)
    else:
        assert result is None


def test_checksums_of_a_real_server():
    capture = json.loads((CAPTURES / "sglang_0.5.23" / "weights_checker.json").read_text())
    result, _ = talk(lambda client: client.weights.checksums(), Reply(capture["response"]))
    assert len(result) == 1
    assert result[0]["model.embed_tokens.weight"] == "f2a86bae9cbc23e5"
    refused = json.loads((CAPTURES / "sglang_0.5.21" / "weights_checker.json").read_text())
    result, _ = talk(lambda client: client.weights.checksums(), Reply(refused["response"], status=refused["status"]))
    assert str(result).endswith("Torch not compiled with CUDA enabled")
    for content in ({"success": True}, {"success": True, "ranks": [{}]}, {"success": True, "ranks": []}):
        assert "no checksums" in str(talk(lambda client: client.weights.checksums(), Reply(content))[0])


def test_a_failure_with_status_200_is_an_error():
    ok = {"success": True, "new_version": "v8"}
    assert "took the version 'v8' instead of v9" in str(talk(lambda c: c.weights.set_version("v9"), Reply(ok))[0])
    no = Reply({"success": False, "message": "busy"})
    assert str(talk(lambda client: client.weights.begin(), no)[0]).endswith("begin an update of its weights: busy")


def test_a_call_that_changes_the_server_is_not_sent_twice():
    broken = Reply({"message": "restarting"}, status=503)
    result, calls = talk(lambda client: client.weights.end(), broken)
    assert isinstance(result, RolloutError)
    assert len(calls) == 1


def test_an_older_server_knows_no_sessions_and_takes_tensors_one_by_one():
    for act in (lambda client: client.weights.begin(), lambda client: client.weights.end()):
        assert talk(act, Reply(status=404), version="0.5.20") == (None, [])
    bucket = WeightBucket(names=("a",), dtypes=("float32",), shapes=((1,),), is_flattened=True)
    result, calls = talk(
        lambda client: client.weights.receive_broadcast(bucket, group_name="g"), Reply({}), version="0.5.5"
    )
    assert "runs SGLang 0.5.5, which takes tensors only one by one" in str(result)
    assert calls == []


def test_requests_are_aborted_by_name_or_all():
    empty = Reply(b"")
    assert [call.body for call in talk(lambda client: client.abort_request("r"), empty)[1]] == [{"rid": "r"}]
    assert [call.body for call in talk(lambda client: client.abort_request(None), empty)[1]] == [{"abort_all": True}]

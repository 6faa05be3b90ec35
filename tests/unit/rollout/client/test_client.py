"""The client against servers that answer correctly, incorrectly, late or never: one answer or one error, in time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from megacov.errors import DataError, RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.wire import GenerateRequest
from megacov.types import Completion, VersionSpan
from tests.support.scripted_server import DROP, Reply, Script, completion, hang, in_turn, scripted_server

REQUEST = GenerateRequest(input_ids=(5, 6), n=2, max_new_tokens=4)
GOOD = Reply([completion([1, 2, 3], text="abc"), completion([4], finish="length")])
VOCAB_SIZE = 16
TIMEOUT_S = 1.0


def talk(script: Script, method: str = "generate", *args: Any, **options: Any) -> tuple[Any, list, RolloutClient]:
    """Call one method of a client of the scripted server; an error is returned like a result."""

    async def run():
        async with scripted_server(script) as (address, calls):
            settings = {"vocab_size": VOCAB_SIZE, "request_timeout_s": TIMEOUT_S, "connect_timeout_s": 0.5}
            async with RolloutClient(address, **settings | options) as client:
                try:
                    result = await getattr(client, method)(*(args or (REQUEST,) * (method == "generate")))
                except (RolloutError, DataError) as error:
                    result = error
            return result, calls, client

    started = time.monotonic()
    outcome = asyncio.run(run())
    assert time.monotonic() - started < TIMEOUT_S + 4.0
    return outcome


def test_a_good_answer():
    result, (call,), client = talk(in_turn(GOOD))
    assert result[0] == Completion((1, 2, 3), (-1.0,) * 3, "abc", "stop", (VersionSpan("v0", 0, 3),))
    assert result[1].finish_reason == "length"
    assert client.num_retries == 0
    assert (call.method, call.path) == ("POST", "/generate")
    assert call.body == {
        "input_ids": [5, 6],
        "sampling_params": {"n": 2, "max_new_tokens": 4, "temperature": 1.0, "top_p": 1.0, "top_k": -1},
        "return_logprob": True,
    }


def test_everything_that_can_be_asked_is_sent():
    request = GenerateRequest(
        input_ids=(5,),
        n=1,
        max_new_tokens=4,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        stop=("x",),
        stop_token_ids=(7,),
        sampling_seed=9,
    )
    result, (call,), _ = talk(in_turn(Reply(completion([]))), "generate", request, api_key="secret")
    assert result[0].token_ids == ()
    assert call.body["sampling_params"] == {
        "n": 1,
        "max_new_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "stop": ["x"],
        "stop_token_ids": [7],
        "sampling_seed": 9,
    }
    assert call.headers["authorization"] == "Bearer secret"


def test_versions_of_tokens():
    mixed = [{"version": "a", "start": 0, "end": 1}, {"version": "b", "start": 1, "end": 3}]
    old_server = completion([1, 2], version="b")
    del old_server["meta_info"]["weight_versions"]
    result, *_ = talk(in_turn(Reply([completion([1, 2, 3], weight_versions=mixed), old_server])))
    assert result[0].version_spans == (VersionSpan("a", 0, 1), VersionSpan("b", 1, 3))
    assert result[1].version_spans == (VersionSpan("b", 0, 2),)


def test_aborted_completions_are_answers():
    result, *_ = talk(in_turn(Reply([completion([1], finish="abort"), completion([], finish="abort")])))
    assert [one.finish_reason for one in result] == ["abort", "abort"]


@pytest.mark.parametrize("trouble", [Reply(status=503), Reply(status=429), Reply(status=408), Reply(status=500), DROP,
                                     Reply(b"[", promised_bytes=500)])  # fmt: skip
def test_transient_failures_are_retried(trouble):
    result, calls, client = talk(in_turn(trouble, trouble, GOOD), request_timeout_s=20.0)
    assert len(result) == 2
    assert len(calls) == 3
    assert client.num_retries == 2


@pytest.mark.parametrize("trouble", [Reply({"error": {"message": "too busy"}}, status=503), DROP])
def test_lasting_failures_end_after_the_retries(trouble):
    result, calls, _ = talk(in_turn(trouble), max_retries=2, request_timeout_s=20.0)
    assert isinstance(result, RolloutError)
    assert "2 retries" in str(result)
    assert len(calls) == 3
    if trouble is not DROP:
        assert "too busy" in str(result)


@pytest.mark.parametrize("script", [hang, in_turn(Reply(b"[", promised_bytes=500, stalls=True))])
def test_a_server_that_hangs_ends_at_the_deadline(script):
    result, *_ = talk(script)
    assert isinstance(result, RolloutError)
    assert "within 1 s" in str(result)


def test_endless_failures_end_at_the_deadline():
    result, calls, _ = talk(in_turn(Reply(status=503)), max_retries=1000)
    assert isinstance(result, RolloutError)
    assert len(calls) < 20


def test_a_server_that_is_not_there():
    async def run():
        async with RolloutClient("http://127.0.0.1:9", vocab_size=VOCAB_SIZE, max_retries=1) as client:
            await client.generate(REQUEST)

    with pytest.raises(RolloutError, match="127.0.0.1:9"):
        asyncio.run(run())


# SGLang's four shapes, FastAPI's shape, and no body.
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"error": {"message": "The input is too long."}}, "The input is too long."),
        ({"error": "unknown field `seed`"}, "unknown field `seed`"),
        ({"object": "error", "message": "1 validation error:\n  {...}", "code": 400}, "1 validation error:"),
        ({"success": False, "message": "no such folder"}, "no such folder"),
        ({"detail": "Not Found"}, "Not Found"),
        (b"Flush cache failed.\n", "Flush cache failed."),
        (b"", "no reason given"),
    ],
)
def test_a_refusal_is_not_retried_and_has_a_reason(content, sentence):
    result, calls, _ = talk(in_turn(Reply(content, status=400)))
    assert isinstance(result, RolloutError)
    assert str(result).endswith(f"refused /generate with status 400: {sentence}")
    assert len(calls) == 1


def with_meta(**meta: Any) -> list[dict[str, Any]]:
    return [completion([1, 2], **meta), completion([1])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[{", "cannot be used"),
        (b"<html>", "cannot be used"),
        ({}, "text"),
        ([completion([1])], "1 completions, but 2"),
        ([completion([1])] * 3, "3 completions, but 2"),
        (completion([1]), "1 completions, but 2"),
        ([completion([1, 2], log_probs=[-1.0]), completion([1])], "log-probs"),
        ([completion([1, 2], log_probs=[-1.0, float("nan")]), completion([1])], "finite"),
        ([completion([1, 2], log_probs=[-1.0, float("-inf")]), completion([1])], "finite"),
        ([completion([1, 2], log_probs=[-1.0, None]), completion([1])], "valid number"),
        ([completion([1, VOCAB_SIZE]), completion([1])], "token id 16"),
        ([completion([3, -1]), completion([1])], "token id -1"),
        (with_meta(output_token_logprobs=[[-1.0, 1, None], [-1.0, 3, None]]), "or of other tokens"),
        (with_meta(finish_reason=None), "finish_reason"),
        (with_meta(finish_reason={"type": "odd"}), "finish_reason.type"),
        (with_meta(weight_versions=[]), "weight versions"),
        (with_meta(weight_versions=[{"version": "a", "start": 0, "end": 1}]), "weight versions"),
        (with_meta(weight_versions=[{"version": "a", "start": 1, "end": 2}]), "weight versions"),
    ],
)
def test_an_answer_that_cannot_be_used_is_an_error(content, message):
    result, calls, _ = talk(in_turn(Reply(content)))
    assert isinstance(result, RolloutError)
    assert message in str(result)
    assert len(calls) == 1


@pytest.mark.parametrize("ids", [(VOCAB_SIZE,), (5, -1), ()])
def test_a_prompt_that_would_kill_the_server_is_not_sent(ids):
    result, calls, _ = talk(in_turn(GOOD), "generate", GenerateRequest(input_ids=ids, n=2, max_new_tokens=4))
    assert isinstance(result, DataError)
    assert calls == []


@pytest.mark.parametrize(
    ("method", "args", "path", "body"),
    [
        ("pause", ("retract",), "/pause_generation", {"mode": "retract"}),
        ("resume", (), "/continue_generation", {}),
        ("flush_cache", (), "/flush_cache", {}),
    ],
)
def test_control_calls_always_have_a_body(method, args, path, body):
    result, (call,), _ = talk(in_turn(Reply({})), method, *args)
    assert result is None
    assert (call.method, call.path, call.body) == ("POST", path, body)


def test_weight_updates_and_control_use_the_admin_key():
    async def run():
        async with (
            scripted_server(in_turn(Reply({"success": True}))) as (address, calls),
            RolloutClient(address, vocab_size=4, api_key="a", admin_key="b") as client,
        ):
            await client.model_info()
            await client.server_info()
            await client.weights.load_from_disk("folder", weight_version="v1")
            await client.pause("abort")
            await client.flush_cache()
            return [call.headers["authorization"] for call in calls]

    assert asyncio.run(run()) == ["Bearer a", "Bearer a", "Bearer b", "Bearer b", "Bearer b"]


@pytest.mark.parametrize(
    "reply", [Reply({"success": False, "message": "no"}), Reply({"success": False, "message": "no"}, status=400)]
)
def test_an_update_that_failed_is_an_error(reply):
    async def run():
        async with scripted_server(in_turn(reply)) as (address, _), RolloutClient(address, vocab_size=4) as client:
            await client.weights.load_from_disk("folder", weight_version="v1")

    with pytest.raises(RolloutError, match="no$"):
        asyncio.run(run())


def test_older_servers_know_the_older_names():
    async def script(call) -> Reply:
        return Reply({"weight_version": "v3"}) if call.path.startswith("/get_") else Reply({"detail": "x"}, status=404)

    for method, path in (("model_info", "/get_model_info"), ("server_info", "/get_server_info")):
        result, calls, _ = talk(script, method)
        assert result == {"weight_version": "v3"}
        assert [call.path for call in calls] == [path.replace("get_", ""), path]


@pytest.mark.parametrize("content", [b"nothing", [1]])
def test_info_that_is_no_json_object_is_an_error(content):
    result, *_ = talk(in_turn(Reply(content)), "model_info")
    assert isinstance(result, RolloutError)


def test_the_client_waits_for_health():
    result, calls, _ = talk(in_turn(Reply(status=503), DROP, Reply(b"")), "wait_healthy", 5.0)
    assert result is None
    assert [call.path for call in calls] == ["/health"] * 3
    result, *_ = talk(in_turn(Reply(status=503)), "wait_healthy", 0.5)
    assert isinstance(result, RolloutError)
    assert "0.5 s (status 503)" in str(result)


def test_many_calls_share_few_connections():
    async def run():
        under_way = most = 0

        async def script(_call) -> Reply:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.01)
            under_way -= 1
            return GOOD

        async with (
            scripted_server(script) as (address, calls),
            RolloutClient(address, vocab_size=VOCAB_SIZE, max_connections=3) as client,
        ):
            await asyncio.gather(*(client.generate(REQUEST) for _ in range(12)))
        assert len(calls) == 12
        return most

    assert asyncio.run(run()) == 3

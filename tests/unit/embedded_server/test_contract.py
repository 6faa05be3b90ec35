"""The embedded server answers requests recorded from SGLang 0.5.23 as SGLang did."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.embedded import application
from tests.support.tiny_model import make_tiny_model

CAPTURES = Path(__file__).parents[2] / "captures" / "sglang_0.5.23"

# The server refuses these in SGLang's own words.
SAME_WORDS = [
    "err_404",
    "err_405",
    "err_empty_ids",
    "err_empty_obj",
    "err_prompt_plus_new_too_long",
    "err_prompt_too_long",
    "err_temp_negative",
    "err_unknown_sampling_param",
    "generate_seed_key_seed",
    "flush_cache_get",
    "flush_cache_post",
    "pause_generation_abort",
    "pause_generation_retract",
    "pause_generation_in_place",
    "continue_generation_abort",
    "abort_request_all",
    "abort_request_rid",
    "abort_request_empty",
    "abort_request_unknown",
    "get_health",
    "get_health_generate",
    "get_ready",
    "get_ping",
    "update_weight_version",
]
SAME_SHAPE = [
    "generate_text",
    "generate_input_ids_logprob",
    "generate_greedy",
    "generate_n2_logprob",
    "generate_batch_n2",
    "generate_batch_ids_rids",
    "generate_batch_sp_single",
    "generate_topp_topk",
    "generate_custom_key_minp",
    "generate_stop_token",
    "err_max_new_tokens_0",
    "err_text_and_ids",
    "err_unknown_field",
    "err_bad_json",
    "err_wrong_type_ids",
    "pause_no_body",
    "pause_bad_mode",
    "continue_no_body",
    "get_model_info",
    "get_get_model_info",
    "get_server_info",
    "update_weights_from_disk",
    "update_weights_from_disk_unknown_field",
    "update_weights_from_disk_missing",
    "update_weights_from_disk_bad_body",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Models of the captured servers' size, by their names in the captures."""
    root = tmp_path_factory.mktemp("MODELS")
    for seed in (0, 1):
        make_tiny_model(root / f"m_qwen2_s{seed}", seed=seed, vocab_size=1024, context_length=512)
    return {"MODELS": root}


def load(name: str) -> dict[str, Any]:
    return json.loads((CAPTURES / f"{name}.json").read_text(encoding="utf-8"))


async def send(client, capture: dict[str, Any], folders: dict[str, Path]):
    request = capture["request"]
    body = request["body"]
    if isinstance(body, dict) and "model_path" in body:
        body = {**body, "model_path": body["model_path"].replace("MODELS", str(folders["MODELS"]))}
    content = body if isinstance(body, str) else None if body is None else json.dumps(body)
    headers = {"Content-Type": "application/json"} if content is not None else {}
    return await client.request(request["method"], request["path"], content=content, headers=headers)


def assert_same_shape(ours: Any, theirs: Any, place: str = "reply") -> None:
    """Every key of ours is one of theirs, and every value of ours has the type of theirs."""
    number = (int, float)
    assert type(ours) is type(theirs) or (isinstance(ours, number) and isinstance(theirs, number)), (
        f"{place}: {ours!r} where SGLang has {theirs!r}"
    )
    if isinstance(ours, dict):
        assert ours.keys() <= theirs.keys(), f"{place}: SGLang has no {ours.keys() - theirs.keys()}"
        for key, value in ours.items():
            assert_same_shape(value, theirs[key], f"{place}.{key}")
    elif isinstance(ours, list) and ours:
        assert theirs, f"{place}: SGLang has an empty list"
        for index, value in enumerate(ours):
            assert_same_shape(value, theirs[min(index, len(theirs) - 1)], f"{place}[{index}]")


async def replay(name: str, folders: dict[str, Path]) -> tuple[Any, dict[str, Any]]:
    capture = load(name)
    async with application(folders["MODELS"] / "m_qwen2_s0") as client:
        response = await send(client, capture, folders)
    assert response.status_code == capture["status"]
    if capture["content_type"] is not None:
        assert response.headers["content-type"] == capture["content_type"]
        return response.json(), capture
    return response.text, capture


@pytest.mark.parametrize("name", SAME_WORDS)
def test_same_words(name, folders):
    ours, capture = asyncio.run(replay(name, folders))
    assert ours == capture["response"]


@pytest.mark.parametrize("name", SAME_SHAPE)
def test_same_shape(name, folders):
    ours, capture = asyncio.run(replay(name, folders))
    if name == "generate_stop_token":  # it is random whether a stop token or the length comes first
        assert ours["meta_info"]["finish_reason"]["type"] in ("stop", "length")
        ours["meta_info"]["finish_reason"] = capture["response"]["meta_info"]["finish_reason"]
    if name == "err_text_and_ids":
        assert ours["meta_info"]["prompt_tokens"] == capture["response"]["meta_info"]["prompt_tokens"]
        ours["meta_info"]["finish_reason"] = capture["response"]["meta_info"]["finish_reason"]
    assert_same_shape(ours, capture["response"])


@pytest.mark.parametrize("name", ["generate_batch_n2", "generate_batch_ids_rids", "generate_n2_logprob"])
def test_completions_come_prompt_by_prompt(name, folders):
    ours, capture = asyncio.run(replay(name, folders))
    theirs = capture["response"]
    for key in ("prompt_tokens", "completion_tokens", "output_token_logprobs_length"):
        assert [one["meta_info"][key] for one in ours] == [one["meta_info"][key] for one in theirs]
    given = capture["request"]["body"].get("rid")
    ids = [one["meta_info"]["id"] for one in ours]
    assert ids == given if given else len(set(ids)) == len(ids)


def test_a_token_outside_the_vocabulary_is_refused_and_ends_nothing(folders):
    async def run():
        async with application(folders["MODELS"] / "m_qwen2_s0") as client:
            for bad in (1024, -1):
                response = await client.post("/generate", json={"input_ids": [5, bad]})
                assert response.status_code == 400
                assert f"holds {bad}, but the model's vocabulary has 1024" in response.json()["error"]["message"]
            assert (await client.get("/health")).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"stream": True}, "stream is not supported"),
        ({"top_logprobs_num": 2}, "top_logprobs_num is not supported"),
        ({"logprob_start_len": 3, "return_logprob": True}, "logprob_start_len must be -1 or 0"),
        ({"sampling_params": {"regex": "a*"}}, "regex is not supported"),
        ({"sampling_params": {"top_p": 0.0}}, "top_p must be in"),
        ({"sampling_params": {"top_k": 0}}, "top_k must be -1"),
        ({"sampling_params": {"min_p": 2.0}}, "min_p must be in"),
        ({"sampling_params": {"n": 0}}, "n must be at least 1"),
        ({"sampling_params": {"max_new_tokens": -1}}, "max_new_tokens must be at least 0"),
        ({"sampling_params": {"stop": [""]}}, "stop must not hold an empty string"),
        ({"sampling_params": {"temperature": "hot"}}, "temperature"),
        ({"sampling_params": [{}, {}]}, "length of sampling_params should be equal to the batch size"),
        ({"input_ids": [[5], [6]], "sampling_params": [{"n": 1}, {"n": 2}]}, "parallel_sample_num"),
        ({"input_ids": [[5], [6]], "rid": ["a", "a"]}, "same id twice"),
        ({"input_ids": [[5], []]}, "input_ids cannot be empty"),
    ],
)
def test_unsupported_requests_are_refused(body, message, folders):
    async def run():
        async with application(folders["MODELS"] / "m_qwen2_s0") as client:
            response = await client.post("/generate", json={"input_ids": [5], **body})
            error = response.json()["error"]
            assert response.status_code == 400
            assert message in (error if isinstance(error, str) else error["message"])

    asyncio.run(run())

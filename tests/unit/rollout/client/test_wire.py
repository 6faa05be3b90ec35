"""The client reads replies recorded from SGLang 0.5.23."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megacov.rollout.client.wire import error_sentence, read_completions
from megacov.types import VersionSpan
from tests.support import scripted_server

CAPTURES = Path(__file__).parents[3] / "captures" / "sglang_0.5.23"


def response_in(name: str) -> Any:
    return json.loads((CAPTURES / f"{name}.json").read_text(encoding="utf-8"))["response"]


@pytest.mark.parametrize(
    "name",
    [
        "generate_n2_logprob",
        "generate_greedy",
        "generate_topp_topk",
        "generate_stop_token",
        "err_max_new_tokens_0",
        "pause_abort_victim",
    ],
)
def test_completions(name):
    response = response_in(name)
    replies = response if isinstance(response, list) else [response]
    completions = read_completions(
        json.dumps(response).encode(), num_completions=len(replies), vocab_size=1024, server="sglang"
    )
    for completion, reply in zip(completions, replies, strict=True):
        meta = reply["meta_info"]
        assert completion.text == reply["text"]
        assert completion.token_ids == tuple(reply["output_ids"])
        assert completion.log_probs == tuple(entry[0] for entry in meta["output_token_logprobs"])
        assert completion.finish_reason == meta["finish_reason"]["type"]
        (span,) = completion.version_spans
        assert (span.version, span.start, span.end) == (meta["weight_version"], 0, len(reply["output_ids"]))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("err_empty_ids", "input_ids cannot be empty."),
        ("err_temp_negative", "temperature must be a non-negative finite number, got -1."),
        ("err_unknown_sampling_param", "unknown field `bogus`, expected one of `max_new_tokens`"),
        ("err_bad_json", "1 validation error:"),
        ("update_weights_from_disk_missing", "Failed to get weights iterator"),
        ("flush_cache_while_busy", "Flush cache failed."),
        ("err_404", "Not Found"),
    ],
)
def test_refusals(name, sentence):
    response = response_in(name)
    content = response if isinstance(response, str) else json.dumps(response)
    said = error_sentence(content.encode())
    assert said.startswith(sentence)
    assert "\n" not in said


@pytest.mark.parametrize(("num_tokens", "num_logged"), [(0, 1), (1, 0), (2, 3), (3, 2)])
def test_an_aborted_completion_has_the_tokens_whose_log_probs_are_there(num_tokens, num_logged):
    reply = scripted_server.completion([4, 5, 6], finish="abort", version="7")
    reply["output_ids"] = reply["output_ids"][:num_tokens]
    meta = reply["meta_info"]
    meta["output_token_logprobs"] = meta["output_token_logprobs"][:num_logged]
    content = json.dumps(reply).encode()
    (found,) = read_completions(content, num_completions=1, vocab_size=10, server="sglang")
    both = min(num_tokens, num_logged)
    assert found.token_ids == (4, 5, 6)[:both]
    assert len(found.log_probs) == both
    assert found.version_spans == (VersionSpan("7", 0, both),)

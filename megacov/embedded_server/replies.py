"""Replies to /generate, as SGLang would send them."""

from __future__ import annotations

import time
from typing import Any

from megacov.embedded_server.generation import EngineRequest, Finish, Generation
from megacov.embedded_server.model import ServedModel
from megacov.embedded_server.requests import fresh_id

CONTRACT_VERSION = "0.5.23"  # SGLang version whose contract this server follows; clients adapt to it


def completions_of(request: EngineRequest, served: ServedModel) -> list[dict[str, Any]]:
    """The completions of a finished request as JSON objects, in the order of its copies."""
    return [_completion(generation, served) for generation in request.generations]


def _completion(generation: Generation, served: ServedModel) -> dict[str, Any]:
    finish = generation.finish
    assert finish is not None
    request = generation.request
    num_tokens = len(generation.output_ids)
    meta: dict[str, Any] = {
        "id": request.rid if len(request.generations) == 1 else fresh_id(),
        "finish_reason": _finish_reason(finish, request),
        "prompt_tokens": len(request.prompt_ids),
        "weight_version": generation.spans[-1][0],
        "num_retractions": generation.num_retractions,
        "completion_tokens": num_tokens,
        "cached_tokens": 0,
        "weight_versions": _version_spans(generation),
        "e2e_latency": time.monotonic() - request.created_s,
    }
    if request.wants_log_probs:
        meta["input_token_logprobs"] = _input_log_probs(request)
        meta["output_token_logprobs"] = [
            [log_prob, token, None] for log_prob, token in zip(generation.log_probs, generation.output_ids, strict=True)
        ]
        meta["output_token_logprobs_length"] = num_tokens
    return {"text": _text(generation, finish, served), "output_ids": generation.output_ids, "meta_info": meta}


def _finish_reason(finish: Finish, request: EngineRequest) -> dict[str, Any]:
    if finish.kind == "stop":
        return {"type": "stop", "matched": finish.matched}
    if finish.kind == "length":
        return {"type": "length", "length": request.params.max_new_tokens}
    return {"type": "abort", "message": finish.message, "status_code": finish.status_code, "err_type": None}


def _version_spans(generation: Generation) -> list[dict[str, Any]]:
    ends = [start for _, start in generation.spans[1:]] + [len(generation.output_ids)]
    return [
        {"version": version, "start": start, "end": end}
        for (version, start), end in zip(generation.spans, ends, strict=True)
    ]


def _input_log_probs(request: EngineRequest) -> list[list[float | int | None]]:
    if request.input_log_probs is None:
        return []
    log_probs: list[float | None] = [None, *request.input_log_probs]
    return [[log_prob, token, None] for log_prob, token in zip(log_probs, request.prompt_ids, strict=True)]


def _text(generation: Generation, finish: Finish, served: ServedModel) -> str:
    params = generation.request.params
    trims = finish.kind == "stop" and not params.no_stop_trim
    output_ids = generation.output_ids[:-1] if trims and isinstance(finish.matched, int) else generation.output_ids
    text = str(served.tokenizer.decode(output_ids, skip_special_tokens=params.skip_special_tokens))
    if trims and isinstance(finish.matched, str):
        text = text.partition(finish.matched)[0]
    return text

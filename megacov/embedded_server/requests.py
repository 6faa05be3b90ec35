"""From the body of /generate to requests for the engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

from megacov.embedded_server.bodies import MAX_COMPLETIONS, GenerateBody, invalid_value, parse_sampling_params
from megacov.embedded_server.generation import EngineRequest
from megacov.embedded_server.model import ServedModel
from megacov.embedded_server.sampling import SamplingParams

Value = TypeVar("Value")

_ids = random.Random()  # not the module's generator, which anybody may seed


def is_single(body: GenerateBody) -> bool:
    """Whether the body holds one prompt and not a batch; input_ids take precedence over text."""
    if body.input_ids is not None:
        return not (body.input_ids and isinstance(body.input_ids[0], list))
    return isinstance(body.text, str)


def build_requests(
    body: GenerateBody, served: ServedModel, *, on_done: Callable[[EngineRequest], None]
) -> list[EngineRequest]:
    """Make one request for each prompt of the body.

    Args:
        body: body of /generate.
        served: model whose limits the requests must keep.
        on_done: callback of every request.

    Returns:
        Requests in the order of the prompts.

    Raises:
        RequestError: the body asks for something impossible or unsupported.
    """
    unsupported = body.unsupported()
    if unsupported is not None:
        raise invalid_value(f"{unsupported} is not supported by the embedded server; leave it out, or use SGLang.")
    prompts = _prompts(body, served)
    count = len(prompts)
    all_params = [parse_sampling_params(raw) for raw in _spread(body.sampling_params or {}, count, "sampling_params")]
    if len({params.n for params in all_params}) > 1:
        raise invalid_value("The parallel_sample_num should be the same for all samples in sample params.")
    wants_log_probs = _spread(body.return_logprob or False, count, "return_logprob")
    starts = _spread(-1 if body.logprob_start_len is None else body.logprob_start_len, count, "logprob_start_len")
    if all_params and count * all_params[0].n > MAX_COMPLETIONS:
        raise invalid_value(
            f"A request may ask for {MAX_COMPLETIONS} completions, and this one asks for n = {all_params[0].n} of "
            f"{count} prompts; send several."
        )
    requests = []
    for prompt_ids, params, rid, wants, start in zip(
        prompts, all_params, _rids(body, count), wants_log_probs, starts, strict=True
    ):
        if start not in (-1, 0):
            raise invalid_value(f"logprob_start_len must be -1 or 0 on the embedded server, got {start}.")
        _check_prompt(prompt_ids, params, served)
        requests.append(
            EngineRequest(
                rid=rid,
                prompt_ids=prompt_ids,
                params=params,
                stop_ids=frozenset() if params.ignore_eos else served.eos_token_ids | params.stop_token_ids,
                on_done=on_done,
                wants_log_probs=wants,
                wants_input_log_probs=wants and start == 0,
            )
        )
    return requests


def fresh_id() -> str:
    """An id that no other request has. Unlike uuid4, it makes no system call, which lets go of the GIL."""
    return f"{_ids.getrandbits(128):032x}"


def health_request(on_done: Callable[[EngineRequest], None]) -> EngineRequest:
    """Make a request that only a working engine answers: one greedy token, which uses no random number."""
    params = SamplingParams(max_new_tokens=1, temperature=0.0)
    rid = f"HEALTH_CHECK_{fresh_id()}"
    return EngineRequest(rid=rid, prompt_ids=[0], params=params, stop_ids=frozenset(), on_done=on_done)


def tokenize(text: str | list[str], served: ServedModel) -> list[list[int]]:
    """The token ids of one prompt or of several, always a list of prompts."""
    ids: list[list[int]] = served.tokenizer([text] if isinstance(text, str) else text)["input_ids"]
    return ids


def _prompts(body: GenerateBody, served: ServedModel) -> list[list[int]]:
    prompts: list[list[int]]
    given: Any = body.input_ids  # ids of one prompt, or of several
    if given is not None:
        prompts = [given] if is_single(body) else given
    elif body.text is not None:
        prompts = tokenize(body.text, served)
    else:
        raise invalid_value("Either text, input_ids or input_embeds should be provided.")
    if not prompts or not all(prompts):
        raise invalid_value("input_ids cannot be empty.")
    return prompts


def _check_prompt(prompt_ids: list[int], params: SamplingParams, served: ServedModel) -> None:
    # Such an id kills SGLang, so clients of both servers must get an error here.
    outside = next((token for token in prompt_ids if not 0 <= token < served.vocab_size), None)
    if outside is not None:
        raise invalid_value(
            f"input_ids holds {str(outside)[:40]}, but the model's vocabulary has {served.vocab_size} tokens."
        )
    length, limit, new = len(prompt_ids), served.context_length, params.max_new_tokens
    if length >= limit:
        raise invalid_value(f"The input ({length} tokens) is longer than the model's context length ({limit} tokens).")
    if length + new > limit:
        raise invalid_value(
            f"Requested token count exceeds the model's maximum context length of {limit} tokens. You requested "
            f"a total of {length + new} tokens: {length} tokens from the input messages and {new} tokens for the "
            "completion. Please reduce the number of tokens in the input messages or the completion to fit within the "
            "limit."
        )


def _spread(value: Value | list[Value], count: int, name: str) -> list[Value]:
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise invalid_value(f"The length of {name} should be equal to the batch size ({count}), got {len(value)}.")
    return value


def _rids(body: GenerateBody, count: int) -> list[str]:
    given = body.rid
    if given is None:
        return [fresh_id() for _ in range(count)]
    if isinstance(given, str):
        return [given] if is_single(body) else [f"{given}_{index}" for index in range(count)]
    if len(given) != count:
        raise invalid_value(f"The length of rid should be equal to the batch size ({count}), got {len(given)}.")
    if len(set(given)) != count:
        raise invalid_value("rid holds the same id twice; give every prompt an id of its own.")
    return given

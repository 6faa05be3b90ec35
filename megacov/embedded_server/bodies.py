"""Request bodies of SGLang's HTTP contract, and its four shapes of an error body.

Unknown top-level fields are ignored and unknown sampling parameters are errors, as in SGLang 0.5.23.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError, field_validator

from megacov.embedded_server.sampling import SamplingParams

MAX_COPIES = 4096
"""Largest n."""
MAX_COMPLETIONS = 16_384
"""Completions of one request: its prompts times n."""
_MAX_INT32, _MAX_INT64 = 2**31 - 1, 2**63 - 1
_MAX_STOPS, _MAX_STOP_LENGTH = 256, 4096
_MAX_NAME_LENGTH = 4096
_MAX_SHOWN, _MAX_SHOWN_ERRORS = 500, 20

Name = Annotated[StrictStr, Field(max_length=_MAX_NAME_LENGTH)]
# In SGLang's order. A parameter that the embedded server does not support has its neutral value, the only one allowed.
_SAMPLING_FIELDS: dict[str, Any] = {
    "max_new_tokens": ...,
    "stop": ...,
    "stop_token_ids": ...,
    "stop_regex": None,
    "temperature": ...,
    "top_p": ...,
    "top_k": ...,
    "min_p": ...,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "n": ...,
    "json_schema": None,
    "regex": None,
    "ebnf": None,
    "structural_tag": None,
    "ignore_eos": ...,
    "skip_special_tokens": ...,
    "spaces_between_special_tokens": ...,
    "no_stop_trim": ...,
    "stream_interval": None,
    "logit_bias": None,
    "sampling_seed": ...,
    "custom_params": None,
    "beam_width": None,
    "watermark": None,
    "choice": None,
}
_UNSUPPORTED_FIELDS = ("stream", "top_logprobs_num", "token_ids_logprob", "return_text_in_logprobs", "input_embeds")


# Also in megacov.config.transports: this server is a program of its own and shares no code with the trainer's client.
PauseMode = Literal["abort", "retract", "in_place"]


class RequestError(Exception):
    """A request that gets an error reply; `body` is the JSON that SGLang would send."""

    def __init__(self, body: dict[str, Any], status_code: int = 400) -> None:
        """Hold body and status code of the HTTP reply."""
        super().__init__(str(body))
        self.body = body
        self.status_code = status_code


def invalid_value(message: str) -> RequestError:
    """The error for a value that the server refuses."""
    return RequestError({"error": {"message": message}})


def invalid_field(message: str) -> RequestError:
    """The error for a sampling parameter that does not exist or has the wrong type."""
    return RequestError({"error": message})


def invalid_body(errors: list[Any], where: str) -> dict[str, Any]:
    """The error body for unreadable JSON or a field of the wrong type.

    Args:
        errors: pydantic's errors.
        where: HTTP method and path.

    Returns:
        The body.
    """
    plural = "error" if len(errors) == 1 else "errors"
    # An error shows its input, which may be the whole body.
    lines = "".join(f"\n  {error}"[:_MAX_SHOWN] for error in errors[:_MAX_SHOWN_ERRORS])
    message = f"{len(errors)} validation {plural}:{lines}\n\n    {where}"
    return {"object": "error", "message": message, "type": "Bad Request", "param": None, "code": 400}


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class GenerateBody(_Body):
    """POST /generate; lists make a batch."""

    model_config = ConfigDict(extra="allow", frozen=True)

    rid: Name | list[Name] | None = None
    text: StrictStr | list[StrictStr] | None = None
    input_ids: list[StrictInt] | list[list[StrictInt]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    return_logprob: StrictBool | list[StrictBool] | None = None
    logprob_start_len: StrictInt | list[StrictInt] | None = None

    def unsupported(self) -> str | None:
        """The first field that the embedded server does not support, or None."""
        extra = self.model_extra or {}
        return next((name for name in _UNSUPPORTED_FIELDS if extra.get(name)), None)


class PauseBody(_Body):
    """POST /pause_generation; a body is required, but may be {}."""

    mode: PauseMode = "abort"


class ContinueBody(_Body):
    """POST /continue_generation; a body is required, but may be {}."""


class DiskUpdateBody(_Body):
    """POST /update_weights_from_disk. The path is on the server's file system."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    model_path: Name
    weight_version: Name | None = None
    flush_cache: StrictBool = True
    abort_all_requests: StrictBool = False


class VersionBody(_Body):
    """POST /update_weight_version. Aborts all requests by default."""

    new_version: Name
    abort_all_requests: StrictBool = True


class AbortBody(_Body):
    """POST /abort_request. Does nothing without rid and abort_all."""

    rid: Name | None = None
    abort_all: StrictBool = False


class _SamplingBody(BaseModel):
    """The sampling parameters that the embedded server supports; null means the default."""

    model_config = ConfigDict(extra="ignore", strict=True)

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    n: int = 1
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True  # has no effect on a fast tokenizer
    sampling_seed: int | None = None

    @field_validator("stop")
    @classmethod
    def _listed(cls, stop: str | list[str]) -> list[str]:
        return [stop] if isinstance(stop, str) else stop


def parse_sampling_params(raw: Mapping[str, Any]) -> SamplingParams:
    """Check the sampling parameters of one request.

    Args:
        raw: parameters as the client sent them.

    Returns:
        The parameters, within their ranges.

    Raises:
        RequestError: a parameter is unknown, unsupported or out of range; the message is SGLang's where it has one.
    """
    for name, value in raw.items():
        if name not in _SAMPLING_FIELDS:
            known = ", ".join(f"`{known}`" for known in _SAMPLING_FIELDS)
            raise invalid_field(f"unknown field `{name}`, expected one of {known}")
        neutral = _SAMPLING_FIELDS[name]
        if neutral is not ... and value is not None and value != neutral:
            raise invalid_value(f"{name} is not supported by the embedded server; leave it out, or use SGLang.")
    try:
        body = _SamplingBody.model_validate({name: value for name, value in raw.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise invalid_field(f"{first['msg']} - at `$.{'.'.join(map(str, first['loc']))}`") from error
    _check_ranges(body)
    values = body.model_dump(exclude={"stop", "stop_token_ids", "spaces_between_special_tokens"})
    return SamplingParams(stop=tuple(body.stop), stop_token_ids=frozenset(body.stop_token_ids), **values)


def _check_ranges(body: _SamplingBody) -> None:
    if not (math.isfinite(body.temperature) and body.temperature >= 0.0):
        raise invalid_value(f"temperature must be a non-negative finite number, got {body.temperature:g}.")
    if not 0.0 < body.top_p <= 1.0:
        raise invalid_value(f"top_p must be in (0, 1], got {body.top_p:g}.")
    if not 0.0 <= body.min_p <= 1.0:
        raise invalid_value(f"min_p must be in [0, 1], got {body.min_p:g}.")
    if not 1 <= body.top_k <= _MAX_INT32 and body.top_k != -1:
        raise invalid_value(f"top_k must be -1 (disable) or at least 1, got {_cut(body.top_k)}.")
    if not 0 <= body.max_new_tokens <= _MAX_INT32:
        raise invalid_value(f"max_new_tokens must be at least 0, got {_cut(body.max_new_tokens)}.")
    if not 1 <= body.n <= MAX_COPIES:
        raise invalid_value(f"n must be at least 1 and at most {MAX_COPIES}, got {_cut(body.n)}.")
    if body.sampling_seed is not None and not -_MAX_INT64 <= body.sampling_seed <= _MAX_INT64:
        raise invalid_value(f"sampling_seed must be an integer of 64 bits, got {_cut(body.sampling_seed)}.")
    if any(not 0 <= token <= _MAX_INT64 for token in body.stop_token_ids):
        raise invalid_value("stop_token_ids must be token ids.")
    if "" in body.stop:
        raise invalid_value("stop must not hold an empty string.")
    if len(body.stop) > _MAX_STOPS or max(map(len, body.stop), default=0) > _MAX_STOP_LENGTH:
        raise invalid_value(f"stop may hold {_MAX_STOPS} texts of {_MAX_STOP_LENGTH} characters.")


def _cut(number: int) -> str:
    text = str(number)
    return text if len(text) <= 40 else f"{text[:37]}..."

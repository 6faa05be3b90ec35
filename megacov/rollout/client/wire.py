"""Requests to a rollout server and its replies; both are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from megacov.config.messages import show
from megacov.errors import DataError, RolloutError
from megacov.types import Completion, FinishReason, VersionSpan


@dataclass(slots=True, eq=False)
class Prefix:
    """Shared by requests with a common prefix. `address`: server that answered the last of them."""

    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One prompt and how to complete it n times.

    sampling_seed: on the embedded server, makes each copy a function of the seed. SGLang needs
        --enable-deterministic-inference for it and may then give all copies the same tokens: leave it out there.
    prefix: a fleet sends requests with the same prefix to the server that has it cached, unless that is overloaded.
    """

    input_ids: tuple[int, ...]
    n: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    sampling_seed: int | None = None
    prefix: Prefix | None = None

    def body(self) -> dict[str, Any]:
        """The JSON body of POST /generate."""
        sampling_params: dict[str, Any] = {
            "n": self.n,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }
        if self.stop:
            sampling_params["stop"] = list(self.stop)
        if self.stop_token_ids:
            sampling_params["stop_token_ids"] = list(self.stop_token_ids)
        if self.sampling_seed is not None:
            sampling_params["sampling_seed"] = self.sampling_seed
        return {"input_ids": list(self.input_ids), "sampling_params": sampling_params, "return_logprob": True}


def check_prompt(input_ids: Sequence[int], *, vocab_size: int) -> None:
    """Refuse a prompt that would crash a server: one id outside the vocabulary kills a whole SGLang server.

    Args:
        input_ids: token ids of the prompt.
        vocab_size: rows of the model's embedding.

    Raises:
        DataError: an id is outside the vocabulary, or the prompt is empty.
    """
    if not input_ids:
        raise DataError("A prompt has no token; remove it from the data, or give it text.")
    outside = _first_outside(input_ids, vocab_size)
    if outside is not None:
        raise DataError(
            f"A prompt has the token id {outside}, but the model's vocabulary has {vocab_size} tokens; "
            "use the tokenizer that belongs to the model."
        )


def _first_outside(ids: Sequence[int], vocab_size: int) -> int | None:
    return next((token for token in ids if not 0 <= token < vocab_size), None)


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _FinishReason(_Reply):
    type: FinishReason


class _Span(_Reply):
    version: str
    start: int
    end: int


class _MetaInfo(_Reply):
    finish_reason: _FinishReason
    # Missing where a request was aborted before its first token.
    output_token_logprobs: list[tuple[FiniteFloat, int, str | None]] = Field(default_factory=list)
    weight_version: str = "default"
    weight_versions: list[_Span] | None = None


class _CompletionReply(_Reply):
    text: str
    output_ids: list[int]
    meta_info: _MetaInfo


class _ErrorReply(BaseModel):
    """SGLang's four shapes of an error body, and FastAPI's: the sentence is in one of these fields."""

    error: str | dict[str, Any] | None = None
    message: str | None = None
    detail: Any = None


_MANY = TypeAdapter(list[_CompletionReply])


def read_completions(content: bytes, *, num_completions: int, vocab_size: int, server: str) -> list[Completion]:
    """Read the reply to /generate for one prompt.

    Args:
        content: JSON body.
        num_completions: number of completions requested.
        vocab_size: upper bound of token ids, exclusive.
        server: address, for error messages.

    Returns:
        The completions, in the order of the reply.

    Raises:
        RolloutError: the reply is malformed, or its lengths, token ids or log-probs are wrong.
    """
    try:
        if content.lstrip().startswith(b"["):
            replies = _MANY.validate_json(content)
        else:
            replies = [_CompletionReply.model_validate_json(content)]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise RolloutError(
            f"{server} sent a reply to /generate that cannot be used: {place}: {first['msg']}."
        ) from error
    if len(replies) != num_completions:
        raise RolloutError(f"{server} sent {len(replies)} completions, but {num_completions} were asked for.")
    return [_completion(reply, vocab_size=vocab_size, server=server) for reply in replies]


def _completion(reply: _CompletionReply, *, vocab_size: int, server: str) -> Completion:
    ids, meta = reply.output_ids, reply.meta_info
    logged_ids = [token for _, token, _ in meta.output_token_logprobs]
    if meta.finish_reason.type == "abort":
        # SGLang may abort between appending a token and its log-prob: keep what both lists have.
        ids = logged_ids = ids[: len(logged_ids)] if logged_ids[: len(ids)] == ids[: len(logged_ids)] else []
    if logged_ids != ids:
        raise RolloutError(f"{server} sent {len(ids)} tokens, but log-probs of {len(logged_ids)} or of other tokens.")
    outside = _first_outside(ids, vocab_size)
    if outside is not None:
        raise RolloutError(
            f"{server} sent the token id {show(outside)}, but the vocabulary has {vocab_size} tokens; "
            "serve the model that is trained."
        )
    return Completion(
        token_ids=tuple(ids),
        log_probs=tuple(log_prob for log_prob, _, _ in meta.output_token_logprobs[: len(ids)]),
        text=reply.text,
        finish_reason=meta.finish_reason.type,
        version_spans=_version_spans(meta, len(ids), server=server),
    )


def _version_spans(meta: _MetaInfo, num_tokens: int, *, server: str) -> tuple[VersionSpan, ...]:
    if meta.weight_versions is None:  # SGLang before 0.5.19 reports only the last version
        return (VersionSpan(meta.weight_version, 0, num_tokens),)
    spans = tuple(VersionSpan(span.version, span.start, span.end) for span in meta.weight_versions)
    if meta.finish_reason.type == "abort":
        spans = tuple(
            VersionSpan(span.version, span.start, min(span.end, num_tokens))
            for span in spans
            if span.start < num_tokens or span.start == 0
        )
    starts = [span.start for span in spans]
    ends = [span.end for span in spans]
    if [*starts, num_tokens] != [0, *ends] or ends != sorted(ends):
        raise RolloutError(
            f"{server} sent weight versions of tokens {show(starts)} to {show(ends)} for {num_tokens} tokens."
        )
    return spans


def error_sentence(content: bytes) -> str:
    """Extract the server's message from an error body.

    Args:
        content: JSON in one of SGLang's shapes, or text.

    Returns:
        One line.
    """
    try:
        reply = _ErrorReply.model_validate_json(content)
    except ValidationError:
        return " ".join(content.decode(errors="replace").split())[:500] or "no reason given"
    nested = reply.error.get("message") if isinstance(reply.error, dict) else reply.error
    sentence = nested or reply.message or reply.detail or "no reason given"
    return str(sentence).splitlines()[0][:500]

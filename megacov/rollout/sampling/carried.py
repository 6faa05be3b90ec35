"""Groups that a rollout batch leaves for the next one: their completions are finished, begun, or not begun."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megacov.config.messages import show
from megacov.errors import CheckpointError
from megacov.json_text import parse_json
from megacov.types import Completion, FinishReason, Prompt, VersionSpan

DecodeTokens = Callable[[Sequence[int]], str]

# 16 responses of 32,768 tokens take some 18 MB. The text is our own, and its sha256 is checked.
_MAX_LINE_BYTES = 2**30

NOT_BEGUN = Completion(token_ids=(), log_probs=(), text="", finish_reason="abort", version_spans=())
"""A completion without a token; like all completions that end in "abort", it is to be continued."""


@dataclass(frozen=True, slots=True)
class CarriedGroup:
    """A prompt and its completions so far."""

    prompt: Prompt
    completions: tuple[Completion, ...]


def unchecked_token_dropped(completion: Completion, *, decode: DecodeTokens) -> Completion:
    """Drop the last token of an aborted completion before it is continued.

    SGLang does not check whether that token ends the completion, or is the last that fits. Drawing it again changes no
    probability.

    Args:
        completion: a server's completion.
        decode: turns token ids into text without special tokens, as the server does.

    Returns:
        All but the last token if the completion ends in "abort", else the completion itself.
    """
    if completion.finish_reason != "abort" or not completion.token_ids:
        return completion
    ids = completion.token_ids[:-1]
    spans = (VersionSpan(span.version, span.start, min(span.end, len(ids))) for span in completion.version_spans)
    return Completion(
        token_ids=ids,
        log_probs=completion.log_probs[: len(ids)],
        text=decode(ids),
        finish_reason="abort",
        version_spans=tuple(span for span in spans if span.start < span.end),
    )


def join(piece: Completion, rest: Completion, *, decode: DecodeTokens, stop: Sequence[str]) -> Completion:
    """Join a piece with its continuation.

    The server looks for stop texts only in tokens that it made, so stop texts that begin in the piece are found here.

    Args:
        piece: completion that ends in "abort".
        rest: the server's completion of prompt and piece.
        decode: turns token ids into text without special tokens, as the server does.
        stop: texts that end a completion.

    Returns:
        The completion, with the versions of all its tokens.
    """
    if rest.finish_reason == "abort" and not rest.token_ids:
        return piece
    if not piece.token_ids:
        return rest
    ids, reason, begins = piece.token_ids + rest.token_ids, rest.finish_reason, len(piece.token_ids)
    end = _end_of_stop(ids, begins, decode=decode, stop=stop)
    if end is not None:
        ids, reason = ids[:end], "stop"
    return Completion(
        token_ids=ids,
        log_probs=(piece.log_probs + rest.log_probs)[: len(ids)],
        text=_text(ids, reason, decode=decode, stop=stop),
        finish_reason=reason,
        version_spans=_join_spans(piece.version_spans, rest.version_spans, begins=begins, end=len(ids)),
    )


def _end_of_stop(ids: Sequence[int], begins: int, *, decode: DecodeTokens, stop: Sequence[str]) -> int | None:
    """Where the first stop text ends that spans piece and continuation; None if there is none."""
    # Every token is at least one byte, so this many tokens contain any stop text that the last of them completes.
    reach = max((len(text.encode()) for text in stop), default=0)
    for end in range(begins + 1, min(len(ids), begins + reach - 1) + 1):
        tail = decode(ids[max(0, end - reach) : end])
        if any(text in tail for text in stop):
            return end
    return None


def _text(ids: Sequence[int], reason: FinishReason, *, decode: DecodeTokens, stop: Sequence[str]) -> str:
    """Decode as a server does, without what ended it. Joining texts would break characters of several tokens."""
    text = decode(ids)
    if reason != "stop":
        return text
    places = [text.index(each) for each in stop if each in text]
    return text[: min(places)] if places else decode(ids[:-1])  # the last token is a stop token


def _join_spans(
    first: Sequence[VersionSpan], second: Sequence[VersionSpan], *, begins: int, end: int
) -> tuple[VersionSpan, ...]:
    joined: list[VersionSpan] = []
    moved = [VersionSpan(span.version, begins + span.start, min(begins + span.end, end)) for span in second]
    for span in [*first, *moved]:
        if span.start >= span.end:
            continue
        if joined and joined[-1].version == span.version:
            span = VersionSpan(span.version, joined.pop().start, span.end)
        joined.append(span)
    return tuple(joined)


def is_too_old(completion: Completion, *, oldest: int) -> bool:
    """Whether a token comes from weights older than version `oldest`; False if there is no token."""
    return any(span.number < oldest for span in completion.version_spans)


def dump_carried(groups: Iterable[CarriedGroup]) -> str:
    """Write groups as text, one JSON object a line."""
    return "".join(f"{json.dumps(asdict(group))}\n" for group in groups)


def load_carried(text: str) -> tuple[CarriedGroup, ...]:
    """Read groups from the text of `dump_carried`; log-probs are equal to the bit.

    Raises CheckpointError if the text is of another form.
    """
    try:
        return tuple(_group(parse_json(line, allows_nan=True, max_bytes=_MAX_LINE_BYTES)) for line in text.splitlines())
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"the carried groups of a checkpoint are malformed: {show(str(error))}.") from error


def _group(values: dict[str, Any]) -> CarriedGroup:
    prompt = values["prompt"] | {"token_ids": tuple(values["prompt"]["token_ids"])}
    return CarriedGroup(Prompt(**prompt), tuple(map(_completion, values["completions"])))


def _completion(values: dict[str, Any]) -> Completion:
    spans = tuple(VersionSpan(**span) for span in values["version_spans"])
    lists = {name: tuple(values[name]) for name in ("token_ids", "log_probs")}
    return Completion(**(values | lists | {"version_spans": spans}))

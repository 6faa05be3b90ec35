"""A verifier made of others: the sum of their rewards, each times a weight."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from megacov.errors import ConfigError
from megacov.rewards.call import classify, described
from megacov.rewards.loading import LoadedVerifier, load_verifier
from megacov.rewards.settings import VerifierSettings
from megacov.rewards.signature import BY_NAME

_KEYS = ("verifier", "weight", "arguments")


class PartFailedError(Exception):
    """A part of a weighted verifier gave no reward, so there is no sum."""


async def weighted(text: str, answer: str, *, parts: Sequence[Mapping[str, Any]]) -> float:
    """Judge a response by several verifiers, one after the other; async ones are awaited.

    Args:
        text: response.
        answer: answer, which all parts get.
        parts: a list of {verifier: NAME, weight: NUMBER, arguments: {...}}. Weights may be negative, and need not add
            up to 1; arguments may be left out. Values that a part asks for by name, such as num_tokens, are passed on.

    Returns:
        The sum of weight times reward.

    Raises:
        PartFailedError: a part raised, or returned no finite number.
    """
    judge = prepare(parts)
    reward: float = await judge(text, answer)
    return reward


def check_arguments(parts: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError if a part has another form, or is one of megacov's own that its arguments do not fit."""
    if not isinstance(parts, list) or not parts:
        raise ConfigError("parts must be a list of {verifier: NAME, weight: NUMBER, arguments: {...}}.")
    for number, part in enumerate(parts):
        _check_part(part, f"parts.{number}")
        if ":" not in part["verifier"]:
            load_verifier(_settings(part, number))


def check_answer(answer: str, parts: Sequence[Mapping[str, Any]], row: Mapping[str, Any] | None = None) -> None:
    """Raises DataError if a part cannot judge against `answer`."""
    for part in _loaded(json.dumps(parts)):
        part.check_answer(answer, row)


def prepare(parts: Sequence[Mapping[str, Any]]) -> Callable[..., Any]:
    """Load all parts, and return the function that judges by them; it asks for what they ask for."""
    loaded = [part.prepared() for part in _loaded(json.dumps(parts))]
    weights = [float(part["weight"]) for part in parts]
    names = [name for name in (*BY_NAME, "answer") if any(name in part.wanted.keywords for part in loaded)]

    async def judge(text: str, answer: str, **values: Any) -> float:
        given = {**values, "text": text, "answer": answer}
        rewards = [await _reward(part, given) for part in loaded]
        return math.fsum(weight * reward for weight, reward in zip(weights, rewards, strict=True))

    positional = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("text", "answer")]
    by_name = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names if name != "answer"]
    judge.__signature__ = inspect.Signature([*positional, *by_name])  # type: ignore[attr-defined]
    return judge


async def _reward(part: LoadedVerifier, values: Mapping[str, Any]) -> float:
    positional, keywords = part.wanted.bind(values)
    try:
        result = part.judges(*positional, **keywords, **part.arguments)
        if inspect.isawaitable(result):
            result = await result
    except Exception as error:  # of a user's verifier
        raise PartFailedError(f"its part {part.settings.name} raised {described(error)}") from error
    outcome = classify(result)
    if outcome.failure is not None:
        raise PartFailedError(f"its part {part.settings.name} {outcome.reason}")
    return outcome.reward


@lru_cache(maxsize=8)
def _loaded(parts: str) -> tuple[LoadedVerifier, ...]:
    return tuple(load_verifier(_settings(part, number)) for number, part in enumerate(json.loads(parts)))


def _settings(part: Mapping[str, Any], number: int) -> VerifierSettings:
    return VerifierSettings(
        part["verifier"],
        part.get("arguments", {}),
        setting=f"parts.{number}.verifier",
        arguments_setting=f"parts.{number}.arguments",
    )


def _check_part(part: Any, place: str) -> None:
    if not isinstance(part, dict) or not {"verifier", "weight"} <= part.keys() <= set(_KEYS):
        raise ConfigError(f"{place} is {part!r}; give it verifier and weight, and perhaps arguments.")
    if not isinstance(part["verifier"], str) or not isinstance(part.get("arguments", {}), dict):
        raise ConfigError(f"{place}: verifier must be a name, and arguments a mapping.")
    weight = part["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ConfigError(f"{place}.weight is {weight!r}; set it to a number.")


weighted.check_arguments = check_arguments  # type: ignore[attr-defined]
weighted.check_answer = check_answer  # type: ignore[attr-defined]
weighted.prepare = prepare  # type: ignore[attr-defined]

"""The values that a verifier's signature asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megacov.errors import ConfigError

BY_NAME = ("prompt", "row", "finish_reason", "num_tokens")
"""Values that a verifier may ask for by the name of a parameter, besides text and answer."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a verifier is called.

    positional: names of the values passed by position: "text", then perhaps "answer".
    keywords: names of the values passed by keyword.
    """

    positional: tuple[str, ...]
    keywords: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all values."""
        return (*self.positional, *self.keywords)

    def bind(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of a call."""
        return [values[name] for name in self.positional], {name: values[name] for name in self.keywords}


def wanted_values(verifier: Callable[..., Any], name: str) -> Wanted:
    """Read from a verifier's signature how to call it.

    Args:
        verifier: function whose first parameter takes the response and whose second takes the answer; further ones are
            recognised by their names.
        name: name of the verifier in the settings, for messages.

    Returns:
        The values to pass.

    Raises:
        ConfigError: the function takes no response, or requires a parameter that megacov does not know.
    """
    try:
        parameters = list(inspect.signature(verifier).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have no signature
        return Wanted(("text", "answer"), ())
    positional = [each for each in parameters if each.kind in _POSITIONAL]
    takes_any = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    if (not positional and not takes_any) or (positional and positional[0].name in (*BY_NAME, "answer")):
        first = f"its first parameter is {positional[0].name!r}" if positional else "it has no positional parameter"
        raise ConfigError(
            f"rewards.verifier: {name} must take the text of the response as its first parameter, but {first}."
        )
    takes_answer = positional[1].name not in BY_NAME if len(positional) > 1 else not positional
    by_position = ("text", "answer")[: 1 + takes_answer]
    keywords = [
        each.name
        for each in parameters
        if each not in positional[: len(by_position)] and each.kind not in _VARIADIC and _is_passed(each, name)
    ]
    return Wanted(by_position, tuple(keywords))


def _is_passed(parameter: inspect.Parameter, name: str) -> bool:
    """Whether a value is passed to a further parameter; raises ConfigError if it is required and unknown."""
    if parameter.name in (*BY_NAME, "answer") and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
        return True
    if parameter.default is inspect.Parameter.empty:
        known = ", ".join(BY_NAME)
        raise ConfigError(
            f"rewards.verifier: {name} requires a parameter {parameter.name!r}, which megacov does not know; after "
            f"response and answer it may have {known}, and parameters with defaults."
        )
    return False

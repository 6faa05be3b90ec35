"""The values that a verifier's signature asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megacov.errors import ConfigError

BY_NAME = ("prompt", "row", "finish_reason", "num_tokens")
"""Values that a verifier may ask for by the name of a parameter, besides text and answer."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
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


def wanted_values(
    verifier: Callable[..., Any],
    name: str,
    *,
    arguments: Collection[str] = (),
    setting: str = "rewards.verifier",
    arguments_setting: str = "rewards.arguments",
) -> Wanted:
    """Read from a verifier's signature how to call it.

    Args:
        verifier: function whose first parameter takes the response and whose second takes the answer; further ones are
            recognised by their names.
        name: name of the verifier in the settings, for messages.
        arguments: names of the arguments in the settings, each for a further parameter.
        setting: path of the setting that names the verifier, for messages.
        arguments_setting: path of the setting with its arguments, for messages.

    Returns:
        The values to pass, without the arguments.

    Raises:
        ConfigError: the function takes no response, requires a parameter that megacov does not know, or has none for an
            argument.
    """
    try:
        parameters = list(inspect.signature(verifier).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have no signature
        return Wanted(("text", "answer"), ())
    positional = [each for each in parameters if each.kind in _POSITIONAL]
    takes_any = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    if (not positional and not takes_any) or (positional and positional[0].name in (*BY_NAME, "answer")):
        first = f"its first parameter is {positional[0].name!r}" if positional else "it has no positional parameter"
        raise ConfigError(f"{setting}: {name} must take the text of the response as its first parameter, but {first}.")
    takes_answer = positional[1].name not in BY_NAME if len(positional) > 1 else not positional
    by_position = ("text", "answer")[: 1 + takes_answer]
    further = [each for each in parameters if each not in positional[: len(by_position)]]
    _check_arguments(arguments, further, name, arguments_setting)
    keywords = [
        each.name
        for each in further
        if each.kind not in _VARIADIC
        and each.name not in arguments
        and _is_passed(each, name, setting, arguments_setting)
    ]
    return Wanted(by_position, tuple(keywords))


def _check_arguments(
    arguments: Collection[str], parameters: Sequence[inspect.Parameter], name: str, setting: str
) -> None:
    """Raises ConfigError for an argument that no parameter takes."""
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        known = None
    else:
        known = [each.name for each in parameters if each.kind in _BY_KEYWORD and each.name not in (*BY_NAME, "answer")]
    for argument in arguments:
        if argument in BY_NAME or argument in ("text", "answer"):
            raise ConfigError(f"{setting} sets {argument}, which megacov passes to {name} itself: remove it.")
        if known is not None and argument not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no arguments"
            raise ConfigError(f"{setting} sets {argument}, and {name} {takes}: correct or remove it.")


def _is_passed(parameter: inspect.Parameter, name: str, setting: str, arguments_setting: str) -> bool:
    """Whether a value is passed to a further parameter; raises ConfigError if it is required and unknown."""
    if parameter.name in (*BY_NAME, "answer") and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
        return True
    if parameter.default is inspect.Parameter.empty:
        known = ", ".join(BY_NAME)
        raise ConfigError(
            f"{setting}: {name} requires a parameter {parameter.name!r}, which megacov does not know: set it in "
            f"{arguments_setting}, or give it a default; after response and answer it may have {known}."
        )
    return False

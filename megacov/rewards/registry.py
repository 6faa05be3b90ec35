"""Verifiers by name: one of megacov's own, or any importable function."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module

from megacov.errors import ConfigError, RewardError
from megacov.rewards.sum_pairs import sum_pairs

Verifier = Callable[[str, str], float]
"""fn(response text, the prompt's answer) -> reward, a finite number."""

_VERIFIERS: dict[str, Verifier] = {"sum_pairs": sum_pairs}


def get_verifier(name: str) -> Verifier:
    """Find a verifier and wrap it in a check of its results.

    Args:
        name: one of megacov's own ("sum_pairs"), or "package.module:function".

    Returns:
        The function (text, answer) -> reward. It raises RewardError if the verifier fails or returns anything but a
        finite number.

    Raises:
        ConfigError: there is no such verifier, or it cannot be imported or called.
    """
    return _checked(_import_verifier(name) if ":" in name else _own_verifier(name), name)


def _own_verifier(name: str) -> Verifier:
    if name not in _VERIFIERS:
        known = ", ".join(sorted(_VERIFIERS))
        raise ConfigError(
            f"rewards.verifier: there is no verifier {name!r}; use one of {known}, or package.module:function."
        )
    return _VERIFIERS[name]


def _import_verifier(name: str) -> Verifier:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier() or module_name.startswith("."):
        raise ConfigError(f"rewards.verifier: {name!r} does not have the form package.module:function.")
    try:
        module = import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(
            f"rewards.verifier: cannot import {module_name!r} of {name!r} ({error}); "
            "put its folder on PYTHONPATH or correct the name."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = "nothing of that name" if function is None else f"a {type(function).__name__}"
        raise ConfigError(f"rewards.verifier: {name!r} should point to a function, but {module_name} holds {found}.")
    verifier: Verifier = function
    return verifier


def _checked(verifier: Verifier, name: str) -> Verifier:
    def checked_verifier(text: str, answer: str) -> float:
        try:
            reward: object = verifier(text, answer)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise RewardError(
                f"The verifier {name} failed with {type(error).__name__}: {error}, on the response {_excerpt(text)} to "
                f"a prompt with the answer {_excerpt(answer)}; a wrong response must score 0, not raise."
            ) from error
        if not isinstance(reward, (int, float)) or not math.isfinite(reward):
            raise RewardError(
                f"The verifier {name} returned {reward!r} for the response {_excerpt(text)} to a prompt with the "
                f"answer {_excerpt(answer)}; a reward must be a finite number."
            )
        return float(reward)

    return checked_verifier


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")

"""Verifiers by name: one of megacov's own, or any importable function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megacov.errors import ConfigError
from megacov.functions import import_function
from megacov.rewards.sum_pairs import sum_pairs

Verifier = Callable[..., Any]
"""fn(response text, the prompt's answer, further values by name) -> reward, or an awaitable of it."""

_VERIFIERS: dict[str, Verifier] = {"sum_pairs": sum_pairs}


def find_verifier(name: str) -> Verifier:
    """Find a verifier by its name; imports its module.

    Args:
        name: one of megacov's own ("sum_pairs"), or "package.module:function".

    Returns:
        The function.

    Raises:
        ConfigError: there is no such verifier, or it cannot be imported or called.
    """
    return import_function(name, setting="rewards.verifier") if ":" in name else _own_verifier(name)


def _own_verifier(name: str) -> Verifier:
    if name not in _VERIFIERS:
        known = ", ".join(sorted(_VERIFIERS))
        raise ConfigError(
            f"rewards.verifier: there is no verifier {name!r}; use one of {known}, or package.module:function."
        )
    return _VERIFIERS[name]

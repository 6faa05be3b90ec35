"""Verifiers by name: one of megacov's own, or any importable function."""

from __future__ import annotations

import math
from collections.abc import Callable

from megacov.config.functions import import_function
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
    verifier = import_function(name, setting="rewards.verifier") if ":" in name else _own_verifier(name)
    return _checked(verifier, name)


def _own_verifier(name: str) -> Verifier:
    if name not in _VERIFIERS:
        known = ", ".join(sorted(_VERIFIERS))
        raise ConfigError(
            f"rewards.verifier: there is no verifier {name!r}; use one of {known}, or package.module:function."
        )
    return _VERIFIERS[name]


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

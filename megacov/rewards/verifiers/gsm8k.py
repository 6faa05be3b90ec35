"""Verifier of GSM8K: the number after ####, or the last number of the response."""

from __future__ import annotations

from fractions import Fraction

from megacov.errors import ConfigError, DataError
from megacov.rewards.verifiers.numbers import find_numbers, only_number

_METHODS = ("flexible", "strict")
_MARK = "####"


def gsm8k(text: str, answer: str, *, method: str = "flexible") -> float:
    """Judge whether a response gives the right number. 72, 72.0, $72 and 72% are equal, and so are 1,000 and 1000.

    Args:
        text: response.
        answer: a number, or a solution of GSM8K with the number after ####.
        method: "strict" takes the first number after the last ####, and no other; "flexible" takes it too, but the last
            number of the response where none stands after ####.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: `answer` is no number.
    """
    _, mark, end = text.rpartition(_MARK)
    found = find_numbers(end)[:1] if mark else []
    if not found and method == "flexible":
        found = find_numbers(text)[-1:]
    return float(found == [_gold(answer)])


def check_arguments(method: str = "flexible") -> None:
    """Raises ConfigError for another method."""
    if method not in _METHODS:
        raise ConfigError(f"method is {method!r}; set it to {' or '.join(_METHODS)}.")


def check_answer(answer: str) -> None:
    """Raises DataError if `answer` is no number."""
    _gold(answer)


def _gold(answer: str) -> Fraction:
    gold = only_number(answer.rpartition(_MARK)[2])
    if gold is None:
        raise DataError(f"gsm8k needs a number as the answer of a prompt, got {answer[-80:]!r}.")
    return gold


gsm8k.check_arguments = check_arguments  # type: ignore[attr-defined]
gsm8k.check_answer = check_answer  # type: ignore[attr-defined]

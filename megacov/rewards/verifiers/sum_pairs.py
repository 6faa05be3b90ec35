"""Verifier of the sum-pairs task: "137=" asks for two numbers that add up to 137, and 138 pairs do."""

from __future__ import annotations

import re

from megacov.errors import DataError

_NUMBER = "(0|[1-9][0-9]*)"
_TWO_NUMBERS = re.compile(rf"{_NUMBER}\+{_NUMBER}")


def sum_pairs(text: str, answer: str) -> float:
    """Judge whether `text` is two numbers that add up to `answer`.

    Args:
        text: response without its end-of-sequence token, such as "45+92", with nothing around it.
        answer: target in decimal digits, such as "137".

    Returns:
        1.0 for exactly two non-negative decimal numbers without leading zeros, joined by "+", with the correct sum;
        otherwise 0.0.

    Raises:
        DataError: if `answer` is not a non-negative decimal number.
    """
    check_answer(answer)
    match = _TWO_NUMBERS.fullmatch(text)
    # A number longer than the target is too large, and Python refuses to parse very long ones.
    if match is None or max(map(len, match.groups())) > len(answer):
        return 0.0
    return float(int(match[1]) + int(match[2]) == int(answer))


def check_answer(answer: str) -> None:
    """Raises DataError if `answer` is not a non-negative decimal number."""
    if re.fullmatch("[0-9]+", answer) is None:
        raise DataError(f"sum_pairs needs a target in decimal digits as the answer of a prompt, got {answer!r}.")


sum_pairs.check_answer = check_answer  # type: ignore[attr-defined]

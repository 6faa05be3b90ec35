r"""Verifier of numbers with a tolerance: what \boxed{} holds, or the last number of the response."""

from __future__ import annotations

import math
from fractions import Fraction

from megacov.errors import ConfigError, DataError
from megacov.rewards.verifiers.boxed import last_boxed
from megacov.rewards.verifiers.numbers import find_numbers, only_number


def numeric(text: str, answer: str, *, absolute: float = 0.0, relative: float = 1e-6) -> float:
    r"""Judge whether a response gives a number close enough to the right one.

    If the response has a \boxed{} or \fbox{}, the last one counts, and must hold exactly one number. Otherwise the last
    number of the response counts. Units and percent signs are dropped: 50% is 50.

    Args:
        text: response.
        answer: a number, such as 0.75, 3/4, 1.5e3 or \frac{3}{4}.
        absolute: largest difference.
        relative: largest difference, as a share of the right number; the larger of both allowances counts.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: `answer` is no number.
    """
    gold, box = _gold(answer), last_boxed(text)
    found = find_numbers(text if box is None else box)
    if not found or found[-1] is None or (box is not None and len(found) > 1):
        return 0.0
    return float(abs(found[-1] - gold) <= max(Fraction(absolute), Fraction(relative) * abs(gold)))


def check_arguments(absolute: float = 0.0, relative: float = 1e-6) -> None:
    """Raises ConfigError for a tolerance that is no finite number from 0."""
    for name, value in (("absolute", absolute), ("relative", relative)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value!r}; set it to a number from 0.")


def check_answer(answer: str) -> None:
    """Raises DataError if `answer` is no number."""
    _gold(answer)


def _gold(answer: str) -> Fraction:
    gold = only_number(answer)
    if gold is None:
        raise DataError(f"numeric needs a number as the answer of a prompt, got {answer[:80]!r}.")
    return gold


numeric.check_arguments = check_arguments  # type: ignore[attr-defined]
numeric.check_answer = check_answer  # type: ignore[attr-defined]

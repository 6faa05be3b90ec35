"""The verifier of mathematics: the answer in a response's box, against the right one."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Literal

from megacov.errors import ConfigError, DataError
from megacov.rewards.verifiers.mathematics.answers import Reading, is_readable, is_same, reading
from megacov.rewards.verifiers.mathematics.extraction import MAX_ANSWER, last_answers

_FALLBACKS = ("none", "answer_line", "last_math")


def math(
    text: str,
    answer: str,
    *,
    fallback: Literal["none", "answer_line", "last_math"] = "answer_line",
    tolerance: float = 0.0,
) -> float:
    r"""Judge the final answer of a response by its meaning: 1/2, 0.5 and \\frac{1}{2} are the same.

    The answer is what stands in the last box with balanced braces, \\boxed{...} or \\fbox{...}. docs/mathematics.md has
    the rules for lists, units, percent and the rest. The right answer is read once in a process.

    Args:
        text: the response.
        answer: the right answer, in LaTeX or plain, with or without dollar signs or a box of its own.
        fallback: where the answer may stand in a response without a box: "none" (nowhere), "answer_line" (in the last
            line that begins with "Answer:"), or "last_math" (there, or else in the last mathematics between dollars).
        tolerance: relative difference up to which numbers are equal.

    Returns:
        1 if it is right; 0 if it is wrong, cannot be read, or is missing.

    Raises:
        DataError: the right answer is empty.
    """
    gold = _gold(answer)
    given = last_answers(text, fallback=fallback)
    if not given or sum(map(len, given)) > MAX_ANSWER:
        return 0.0
    if is_same(gold, ", ".join(given), tolerance=tolerance):
        return 1.0
    # "15 39/40 or 639/40", each in a box: two forms of one answer
    return float(len(given) > 1 and all(is_same(gold, each, tolerance=tolerance) for each in given))


def check_answer(answer: str) -> None:
    """Refuse a right answer that no response can be compared with.

    Args:
        answer: the right answer.

    Raises:
        DataError: it is no text, it is empty, or it cannot be read as mathematics or words.
    """
    gold = _gold(answer)
    if not is_readable(gold):
        raise DataError(
            f"The right answer {_shown(answer)} is neither mathematics that can be read nor words; correct it."
        )


def check_arguments(*, fallback: str = "answer_line", tolerance: float = 0.0) -> None:
    """Refuse arguments that are out of range; raises ConfigError."""
    if fallback not in _FALLBACKS:
        raise ConfigError(f"fallback is {fallback!r}; use one of {', '.join(_FALLBACKS)}.")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise ConfigError(f"tolerance is {tolerance!r}; use a number from 0 up to 1.")


def prepare() -> None:
    """Import what reads expressions, which takes a third of a second."""
    import_module("math_verify")
    import_module("latex2sympy2_extended")


math.check_answer = check_answer  # type: ignore[attr-defined]
math.check_arguments = check_arguments  # type: ignore[attr-defined]
math.prepare = prepare  # type: ignore[attr-defined]


@lru_cache(maxsize=4096)
def _gold(answer: str) -> Reading:
    if not isinstance(answer, str):
        raise DataError(f"The right answer must be text, and is {answer!r}; correct it.")
    boxes = last_answers(answer, fallback="none")
    found = reading(", ".join(boxes) if boxes else answer, is_gold=True)
    if found is None:
        raise DataError(f"The right answer {_shown(answer)} is empty; correct it.")
    return found


def _shown(answer: str) -> str:
    return repr(answer if len(answer) <= 200 else answer[:200] + "...")

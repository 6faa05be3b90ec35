"""An answer from its text to the verdict."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from megacov.rewards.verifiers.mathematics.comparison import Comparison
from megacov.rewards.verifiers.mathematics.expressions import parsed
from megacov.rewards.verifiers.mathematics.latex import cleaned, key
from megacov.rewards.verifiers.mathematics.structure import (
    Answer,
    Expression,
    Listing,
    Matrix,
    Ordered,
    Quantity,
    Relation,
    Union,
    read,
)

_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+")
_MAX_BRACKETS, _MAX_LENGTH = 120, 1200  # beyond them only the spelling counts


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer that has been read.

    key: its spelling, without blanks.
    answers: its structure; two for "1,080" in a response, which may be a number or a list.
    """

    key: str
    answers: tuple[Answer, ...]


def reading(text: str, *, is_gold: bool) -> Reading | None:
    """Read an answer.

    Args:
        text: what a box contains.
        is_gold: whether it is the right answer, in which "1,080" is a number.

    Returns:
        The answer; None if it is empty.
    """
    if max(map(text.count, "([{")) > _MAX_BRACKETS:
        return Reading(key(text), (Expression(""),)) if text.strip() else None
    latex = cleaned(text)
    if not latex:
        return None
    answers: list[Answer] = [read(latex)] if len(latex) <= _MAX_LENGTH else [Expression(latex)]
    if not is_gold and _THOUSANDS.fullmatch(latex):
        answers.append(Listing(tuple(read(part) for part in latex.split(","))))
    return Reading(key(latex), tuple(answers))


def is_same(gold: Reading, text: str, *, tolerance: float) -> bool:
    """Whether an answer is the right one.

    Args:
        gold: the right answer.
        text: what a response's box contains.
        tolerance: relative difference up to which numbers are equal.

    Returns:
        Whether it is.
    """
    given = reading(text, is_gold=False)
    if given is None:
        return False
    if given.key == gold.key and not _THOUSANDS.fullmatch(gold.key):
        return True
    comparison = _comparison(tolerance)
    return any(comparison.same(right, each) for right in gold.answers for each in given.answers)


@lru_cache(maxsize=8)
def _comparison(tolerance: float) -> Comparison:
    return Comparison(tolerance)


def is_readable(answer: Reading) -> bool:
    """Whether every expression in an answer can be compared by its value."""
    return all(_is_readable(each) for each in answer.answers[:1])


def _is_readable(answer: Answer) -> bool:
    if isinstance(answer, Expression):
        return parsed(answer.latex) is not None
    if isinstance(answer, Quantity):
        return _is_readable(answer.body)
    if isinstance(answer, Matrix):
        return all(_is_readable(cell) for row in answer.rows for cell in row)
    parts: tuple[Answer, ...] = ()
    if isinstance(answer, Listing | Ordered):
        parts = answer.items
    elif isinstance(answer, Relation):
        parts = answer.sides
    elif isinstance(answer, Union):
        parts = answer.parts
    return all(map(_is_readable, parts))

"""Parts of an answer, for comparisons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from megacov.rewards.verifiers.mathematics import expressions
from megacov.rewards.verifiers.mathematics.structure import (
    Answer,
    Expression,
    Listing,
    Matrix,
    Number,
    Ordered,
    Quantity,
    Text,
)


def number_of(answer: Answer) -> complex | None:
    """Value of a number or a quantity in its unit; None if there is none."""
    latex = latex_of(body_of(answer))
    value = None if latex is None else expressions.number(latex)
    is_percent = isinstance(answer, Quantity) and answer.unit is None
    return value / 100 if value is not None and is_percent else value


def body_of(answer: Answer) -> Answer:
    """An answer without its unit."""
    return answer.body if isinstance(answer, Quantity) else answer


def latex_of(answer: Answer) -> str | None:
    """A number or an expression in LaTeX; None for anything else."""
    if isinstance(answer, Number):
        return fraction_latex(answer.value)
    return answer.latex if isinstance(answer, Expression) else None


def fraction_latex(value: Fraction) -> str:
    """A rational number in LaTeX."""
    sign, above = "-" if value < 0 else "", abs(value.numerator)
    return f"{sign}{above}" if value.denominator == 1 else rf"{sign}\frac{{{above}}}{{{value.denominator}}}"


def words_of(answer: Answer) -> str:
    """Words, or an expression that may be one; "" for anything else."""
    if isinstance(answer, Text):
        return answer.words
    return re.sub(r"[\s()]", "", answer.latex) if isinstance(answer, Expression) else ""


def components(answer: Answer) -> tuple[Answer, ...] | None:
    """Components of a vector, which may be a row, a column or a tuple."""
    if isinstance(answer, Matrix) and (len(answer.rows) == 1 or all(len(row) == 1 for row in answer.rows)):
        return tuple(cell for row in answer.rows for cell in row)
    return answer.items if isinstance(answer, Ordered) and answer.left == "(" and answer.right == ")" else None


def flat(items: Sequence[Answer]) -> list[Answer]:
    """Items, those of inner lists in their place: {1 +- sqrt(5), -2} has three."""
    found: list[Answer] = []
    for item in items:
        found += flat(item.items) if isinstance(item, Listing) and not item.is_set else [item]
    return found

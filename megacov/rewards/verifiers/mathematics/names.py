"""Names of what an answer defines: the "x" of "x = 5"."""

from __future__ import annotations

import re

from megacov.rewards.verifiers.mathematics.structure import Answer, Expression, Ordered, Text

_NAME = re.compile(
    r"(?:m?\s*\\angle\s*)?(?:[a-zA-Z]'*|[A-Z]{2,4}|\\(?!infty|pi(?![a-z])|frac|sqrt)[a-z]+|\\overline\s*\{\w+\}|\|\w+\|)"
    r"(?:\s*_\s*(?:\{[^{}]*\}|\w))?(?:\^\s*\{\s*-1\s*\})?(?:\s*\([^()]*\))?"
)


def name_of(side: Answer) -> str | None:
    """Name, without blanks, if one side of a relation is one, such as "x", "f(x)", r"\\angle ABC" or "(x, y)"."""
    if isinstance(side, Ordered):
        names = [name_of(item) for item in side.items]
        return None if None in names else f"({','.join(map(str, names))})"
    if isinstance(side, Text):
        return side.words
    if isinstance(side, Expression) and side.latex not in ("i", "e") and _NAME.fullmatch(side.latex):
        return re.sub(r"\s+", "", side.latex)
    return None

"""Inequalities of one variable as intervals."""

from __future__ import annotations

from fractions import Fraction

from megacov.rewards.verifiers.mathematics.names import name_of
from megacov.rewards.verifiers.mathematics.structure import (
    INFINITY,
    MINUS_INFINITY,
    Answer,
    Number,
    Ordered,
    Relation,
    Union,
)

Bound = tuple[Fraction | float, int]
_LESS = {"<": "(", "\\le": "["}
_MORE = {">": "(", "\\ge": "["}
_END = {"(": ")", "[": "]"}


def as_interval(answer: Answer) -> tuple[str, Answer] | None:
    """Turn an inequality of one variable into an interval.

    Args:
        answer: such as "1 < x <= 2", "x > 3", "3 < x", r"x \\ne 3" or r"x \\in (1,2]".

    Returns:
        Name of the variable and the interval, or the union of two; ("", answer) if it is an interval already. None for
        everything else.
    """
    if isinstance(answer, Ordered | Union):
        return "", answer
    if not isinstance(answer, Relation):
        return None
    sides, signs = answer.sides, answer.signs
    if len(sides) == 3:
        name = name_of(sides[1])
        if name is None:
            return None
        if all(sign in _LESS for sign in signs):
            return name, Ordered((sides[0], sides[2]), _LESS[signs[0]], _END[_LESS[signs[1]]])
        if all(sign in _MORE for sign in signs):
            return name, Ordered((sides[2], sides[0]), _MORE[signs[1]], _END[_MORE[signs[0]]])
        return None
    return _of_two_sides(sides, signs[0]) if len(sides) == 2 else None


def _of_two_sides(sides: tuple[Answer, ...], sign: str) -> tuple[str, Answer] | None:
    names = [name_of(side) for side in sides]
    if (names[0] is None) == (names[1] is None):
        return None
    if sign == "\\in" and names[0] is not None and isinstance(sides[1], Ordered | Union):
        return names[0], sides[1]
    name, bound = (names[0], sides[1]) if names[0] is not None else (names[1], sides[0])
    assert name is not None
    if sign == "\\ne":
        return name, Union((Ordered((MINUS_INFINITY, bound), "(", ")"), Ordered((bound, INFINITY), "(", ")")))
    if sign not in _LESS | _MORE:
        return None
    bracket = (_LESS | _MORE)[sign]
    is_below = (sign in _LESS) == (names[0] is not None)
    return name, Ordered((MINUS_INFINITY, bound), "(", _END[bracket]) if is_below else Ordered(
        (bound, INFINITY), bracket, ")"
    )


def merged_intervals(answer: Ordered | Union) -> list[tuple[Bound, Bound]] | None:
    """Bring a union of intervals into one form.

    Args:
        answer: intervals whose ends are numbers that are written out, or infinite.

    Returns:
        Disjoint intervals in ascending order, each as two bounds: the number, and by how little it is above (1) or
        below (-1) it. None for anything else, such as a pair of numbers in descending order.
    """
    intervals = []
    for part in answer.parts if isinstance(answer, Union) else (answer,):
        if not isinstance(part, Ordered) or len(part.items) != 2:
            return None
        low, high = map(_end, part.items)
        if low is None or high is None or low >= high:
            return None
        intervals.append(((low, int(part.left == "(")), (high, -int(part.right == ")"))))
    merged: list[tuple[Bound, Bound]] = []
    for begin, end in sorted(intervals):
        # Two that meet in a point leave it out only if both do: begin is then just above it, and the end just below.
        if merged and (begin[0], begin[1] - 1) <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _end(item: Answer) -> Fraction | float | None:
    if isinstance(item, Number):
        return item.value
    if item == INFINITY:
        return float("inf")
    return float("-inf") if item == MINUS_INFINITY else None

"""Whether an answer is the right one, by the structure of both."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from megacov.rewards.verifiers.mathematics import expressions
from megacov.rewards.verifiers.mathematics.intervals import as_interval, merged_intervals
from megacov.rewards.verifiers.mathematics.names import name_of
from megacov.rewards.verifiers.mathematics.parts import (
    body_of,
    components,
    flat,
    fraction_latex,
    latex_of,
    number_of,
    words_of,
)
from megacov.rewards.verifiers.mathematics.rationals import exact_number
from megacov.rewards.verifiers.mathematics.splitting import EQUATION_SIGNS
from megacov.rewards.verifiers.mathematics.structure import (
    Answer,
    Expression,
    Listing,
    Matrix,
    Number,
    Numeral,
    Ordered,
    Quantity,
    Relation,
    Text,
    Union,
)

_DEGREE = r"\frac{\pi}{180}"


class Comparison:
    """Compares answers. tolerance: relative difference up to which two numbers are equal."""

    def __init__(self, tolerance: float) -> None:
        """Compare nothing yet."""
        self._tolerance = tolerance

    def same(self, gold: Answer, given: Answer) -> bool:
        """Whether a given answer equals the gold answer.

        Args:
            gold: the right answer. It sets the form: for 5, "x = 5" is right.
            given: the answer of the response.

        Returns:
            Whether it is right.
        """
        if gold == given:
            return True
        for kinds, compare in (
            (Relation, self._relations),
            (Text, self._texts),
            (Matrix, self._matrices),
            (Union, self._sets),
            (Ordered, self._sets),
            (Listing, self._listings),
            (Numeral, _numerals),
            (Quantity, self._quantities),
        ):
            if isinstance(gold, kinds) or isinstance(given, kinds):
                return bool(compare(gold, given))
        return self._values(gold, given)

    def _values(self, gold: Answer, given: Answer) -> bool:
        if isinstance(gold, Number) and isinstance(given, Number):
            difference = abs(gold.value - given.value)
            return difference <= Fraction(self._tolerance) * abs(gold.value)
        texts = latex_of(gold), latex_of(given)
        return None not in texts and expressions.same_expression(*texts, tolerance=self._tolerance)  # type: ignore[arg-type]

    def _quantities(self, gold: Answer, given: Answer) -> bool:
        if isinstance(gold, Quantity) and isinstance(given, Quantity):
            return self._two_quantities(gold, given)
        quantity, plain = (gold, given) if isinstance(gold, Quantity) else (given, gold)
        assert isinstance(quantity, Quantity)
        if quantity.unit is None:
            return self._percent_and_plain(quantity.body, plain, is_gold_percent=quantity is gold)
        if self.same(quantity.body, plain):
            return True  # the question names the unit
        factor = _DEGREE if quantity.unit.dimension == "angle" else fraction_latex(quantity.unit.multiple)
        return factor != "1" and self._scaled(quantity.body, factor, plain)

    def _two_quantities(self, gold: Quantity, given: Quantity) -> bool:
        if gold.unit is None or given.unit is None:
            return gold.unit is given.unit and self.same(gold.body, given.body)
        factor = given.unit.factor_to(gold.unit)
        if factor is None:
            return False
        return (
            self.same(gold.body, given.body)
            if factor == 1
            else self._scaled(given.body, fraction_latex(factor), gold.body)
        )

    def _percent_and_plain(self, percent: Answer, plain: Answer, *, is_gold_percent: bool) -> bool:
        if self._scaled(percent, r"\frac{1}{100}", plain):
            return True
        # "50" answers "how many percent", with or without the sign. "0.5%" does not answer 0.5, which is a share.
        is_share = isinstance(plain, Number) and abs(plain.value) <= 1 and not is_gold_percent
        return not is_share and self.same(percent, plain)

    def _scaled(self, body: Answer, factor: str, other: Answer) -> bool:
        """Whether a number times a factor in LaTeX is another number."""
        latex, value = latex_of(body), exact_number(factor)
        if isinstance(body, Number) and value is not None:
            return self.same(other, Number(body.value * value))
        return latex is not None and self.same(other, Expression(rf"({latex})\cdot{factor}"))

    def _texts(self, gold: Answer, given: Answer) -> bool:
        a, b = words_of(gold), words_of(given)
        if isinstance(given, Text) and given.choice and not (isinstance(gold, Text) and not gold.choice):
            return given.choice == (gold.choice if isinstance(gold, Text) else a)
        return bool(a) and (a == b or (isinstance(gold, Text) and a.lower() == b.lower()))

    def _matrices(self, gold: Answer, given: Answer) -> bool:
        if isinstance(gold, Matrix) and isinstance(given, Matrix):
            return len(gold.rows) == len(given.rows) and all(map(self._in_order, gold.rows, given.rows))
        a, b = components(gold), components(given)
        return a is not None and b is not None and self._in_order(a, b)

    def _sets(self, gold: Answer, given: Answer) -> bool:
        if isinstance(gold, Ordered) and isinstance(given, Ordered):
            brackets = (gold.left, gold.right), (given.left, given.right)
            return brackets[0] == brackets[1] and self._in_order(gold.items, given.items)
        if isinstance(gold, Union) and isinstance(given, Union) and self._any_order(gold.parts, given.parts):
            return True
        if isinstance(gold, Union | Ordered) and isinstance(given, Union | Ordered):
            merged = merged_intervals(gold), merged_intervals(given)
            return merged[0] is not None and merged[0] == merged[1]
        for one, other in ((gold, given), (given, gold)):
            if isinstance(one, Ordered) and isinstance(other, Listing):
                if other.items and all(isinstance(each, Relation) for each in other.items):
                    return self._in_order(one.items, other.items) if one is gold else False
                is_pair = (one.left, one.right) == ("(", ")") and not other.is_set
                return is_pair and self._in_order(gold.items, given.items)  # type: ignore[union-attr]
            if isinstance(one, Union) and isinstance(other, Listing) and not other.is_set:
                found = [as_interval(each) for each in other.items]
                return None not in found and self.same(one, Union(tuple(each[1] for each in found if each)))
        return False

    def _listings(self, gold: Answer, given: Answer) -> bool:
        a = gold.items if isinstance(gold, Listing) else (gold,)
        b = given.items if isinstance(given, Listing) else (given,)
        if any(isinstance(each, Listing) and each.is_set for each in (gold, given)):
            a, b = self._distinct(a), self._distinct(b)
        return self._any_order(flat(a), flat(b))

    def _in_order(self, gold: Sequence[Answer], given: Sequence[Answer]) -> bool:
        return len(gold) == len(given) and all(self.same(x, y) for x, y in zip(gold, given, strict=True))

    def _any_order(self, gold: Sequence[Answer], given: Sequence[Answer]) -> bool:
        if len(gold) != len(given):
            return False
        left = list(given)
        for item in gold:
            found = next((index for index, each in enumerate(left) if self.same(item, each)), None)
            if found is None:
                return False
            del left[found]
        return True

    def _distinct(self, items: Sequence[Answer]) -> tuple[Answer, ...]:
        kept: list[Answer] = []
        for item in items:
            if not any(self.same(each, item) for each in kept):
                kept.append(item)
        return tuple(kept)

    def _relations(self, gold: Answer, given: Answer) -> bool:
        if isinstance(gold, Relation) and isinstance(given, Relation):
            return self._two_relations(gold, given)
        if isinstance(gold, Relation):
            if not _is_equation(gold):
                interval = as_interval(gold)
                return interval is not None and self.same(interval[1], given)
            named = self._named(gold)
            return named is not None and self.same(named[1], given)
        assert isinstance(given, Relation)
        if not _is_equation(given):
            interval = as_interval(given)
            return interval is not None and self.same(gold, interval[1])
        return self._chain_leads_to(gold, given)

    def _two_relations(self, gold: Relation, given: Relation) -> bool:
        if gold.signs == given.signs and self._in_order(gold.sides, given.sides):
            return True
        intervals = as_interval(gold), as_interval(given)
        if intervals[0] is not None and intervals[1] is not None and intervals[0][0] == intervals[1][0]:
            return self.same(intervals[0][1], intervals[1][1])
        if _is_equation(gold) != _is_equation(given):
            return False
        if not _is_equation(gold):
            return self._two_inequalities(gold, given)
        named = self._named(gold), self._named(given)
        if named[0] is not None and named[1] is not None:
            return named[0][0] == named[1][0] and self._chain_leads_to(named[0][1], given)
        sides = [latex_of(side) for side in (*gold.sides, *given.sides)]
        if len(gold.sides) != 2 or len(given.sides) != 2 or None in sides:
            return False
        return expressions.same_zeros((sides[0], sides[1]), (sides[2], sides[3]))  # type: ignore[arg-type]

    def _two_inequalities(self, gold: Relation, given: Relation) -> bool:
        sides = [latex_of(side) for side in (*gold.sides, *given.sides)]
        if len(gold.signs) != 1 or len(given.signs) != 1 or None in sides:
            return False
        larger = {">": False, "\\ge": False, "<": True, "\\le": True, "\\ne": False}
        is_strict = [sign in "<>" for sign in (*gold.signs, *given.signs)]
        a, b, c, d = sides
        if larger[gold.signs[0]]:
            a, b = b, a
        if larger[given.signs[0]]:
            c, d = d, c
        return is_strict[0] == is_strict[1] and expressions.same_zeros((a, b), (c, d), keeps_sign=True)  # type: ignore[arg-type]

    def _named(self, equation: Relation) -> tuple[str, Answer] | None:
        """Name and value of "x = 5", "5 = x" or "AB = 3 + 2 = 5"; for "0.56 = 56%" no name and the first side."""
        first, last = equation.sides[0], equation.sides[-1]
        for side, other in ((first, last), (last, first)):
            name = name_of(side)
            if name is not None:
                return name, other
        return ("", first) if all(number_of(side) is not None for side in equation.sides) else None

    def _chain_leads_to(self, gold: Answer, chain: Relation) -> bool:
        """Whether "x = 1 + 1 = 2" is right for 2: its last side is the answer, and its sides are equal."""
        sides = [side for side in chain.sides if name_of(side) is None]
        if not sides or chain.signs[0] == "\\equiv":
            return False
        if not all(self._follows(one, other) for one, other in pairwise(sides)):
            return False
        if all(number_of(side) is not None for side in sides):
            return any(self.same(gold, side) for side in sides)
        return self.same(gold, sides[-1])

    def _follows(self, one: Answer, other: Answer) -> bool:
        """Whether two sides are equal, or one has variables of its own, so that it is an equation for them."""
        if self.same(one, other) or _is_rounded(one, other):
            return True
        latex = latex_of(one), latex_of(other) or ""
        return latex[0] is not None and not expressions.symbols(latex[0]) <= expressions.symbols(latex[1])


def _is_equation(relation: Relation) -> bool:
    return all(sign in EQUATION_SIGNS for sign in relation.signs)


def _is_rounded(one: Answer, other: Answer) -> bool:
    """Whether one of two numbers is the other one, rounded to as many decimals as it has."""
    a, b = number_of(one), number_of(other)
    decimals = max(body.decimals if isinstance(body, Number) else 0 for body in map(body_of, (one, other)))
    return decimals > 0 and a is not None and b is not None and abs(a - b) <= 0.501 * 10.0**-decimals


def _numerals(gold: Answer, given: Answer) -> bool:
    """Digits decide. A value in another base is no answer to a question for this base."""
    bases = [each.base if isinstance(each, Numeral) else None for each in (gold, given)]
    digits = [each.digits if isinstance(each, Numeral) else latex_of(each) for each in (gold, given)]
    if None not in bases:
        return bases[0] == bases[1] and digits[0] == digits[1]
    return digits[0] == digits[1] and (bases[0] is not None or bases[1] == 10)

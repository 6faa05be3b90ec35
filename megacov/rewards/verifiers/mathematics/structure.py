"""The structure of an answer: numbers, quantities, lists, sets, tuples, intervals, matrices, relations, words.

What stands inside of it, such as the elements of a set, is an answer too. Only expressions go to a library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from megacov.rewards.verifiers.mathematics.quantities import FUNCTION_NAMES, split_quantity, without_thousands
from megacov.rewards.verifiers.mathematics.rationals import exact_number
from megacov.rewards.verifiers.mathematics.splitting import EQUATION_SIGNS, enclosed, split, split_relation
from megacov.rewards.verifiers.mathematics.units import Unit, read_compound
from megacov.rewards.verifiers.mathematics.words import NUMBER_WORDS, plain_words


@dataclass(frozen=True, slots=True)
class Number:
    """A number that is written out. decimals: digits behind its point."""

    value: Fraction
    decimals: int = 0


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or an expression with a unit, or in percent (`unit` is then None)."""

    body: Answer
    unit: Unit | None


@dataclass(frozen=True, slots=True)
class Numeral:
    """A numeral of another base, as its digits."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Text:
    """Words. choice: the letter, if they are that of a multiple choice, perhaps with the text of the choice."""

    words: str
    choice: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """Answers in any order. is_set: in braces."""

    items: tuple[Answer, ...]
    is_set: bool = False


@dataclass(frozen=True, slots=True)
class Ordered:
    """A tuple or an interval: "(1,2)" may be either."""

    items: tuple[Answer, ...]
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Union:
    """A union of sets."""

    parts: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix or a vector."""

    rows: tuple[tuple[Answer, ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain of equations or inequalities; each sign stands between two sides."""

    sides: tuple[Answer, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expression:
    """Anything else."""

    latex: str


Answer = Number | Quantity | Numeral | Text | Listing | Ordered | Union | Matrix | Relation | Expression

INFINITY, MINUS_INFINITY, REALS = Expression(r"\infty"), Expression(r"-\infty"), r"\mathbb{R}"
_ALL_REALS = Ordered((MINUS_INFINITY, INFINITY), "(", ")")
_REALS_WITHOUT = re.compile(r"\\mathbb\{R\}\s*\\(?:setminus|backslash|smallsetminus)\s*\\\{([^{}]*)\\\}")
_EMPTY = {r"\emptyset", r"\{\}", r"\{ \}"}
_MAX_DEPTH = 8
_MAX_ITEMS = 64
_NUMERAL = re.compile(
    r"(-?(?:\\text\s*\{\s*)?[0-9A-Z]+)\s*\}?\s*_\s*(?:\{\s*(?:\\text\s*\{\s*)?(\d+)\s*\}?\s*\}|(\d+))"
)
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\\text\s*\{\s*\(?([A-Za-z])\)?[.:]?\s*\}(.*)|\(\s*([A-Z])\s*\)(.*)|([A-Z])[).:](.*)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'.]*(?:-[A-Za-z]+)*(?: [A-Za-z'.]+(?:-[A-Za-z]+)*)*")
_LONG_WORD = re.compile(r"[A-Za-z]{4}|[A-Za-z]{3} |^(?:odd|yes|no|one|two|six|ten|May)$", re.IGNORECASE)
_MATRIX = re.compile(r"\\begin\s*\{([pbB]?(?:small)?matrix|array)\}(?:\s*\{[clr| ]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)


def read(text: str, depth: int = 0) -> Answer:
    """Read the structure of an answer.

    Args:
        text: a cleaned answer that is not empty.
        depth: of the answer inside of another one.

    Returns:
        The structure; an `Expression` if none is recognised.
    """
    text = without_thousands(_without_braces(text.strip()))
    if depth > _MAX_DEPTH or not text:
        return Expression(text)
    simple = _read_simple(text)
    if simple is not None:
        return simple
    for split_up in (_read_words, _read_several, _read_enclosed, _read_relation, _read_plus_minus, _read_quantity):
        answer = split_up(text, depth + 1)
        if answer is not None:
            return answer
    return Expression(text)


def _without_braces(text: str) -> str:
    while text[:1] == "{" and enclosed(text, "{", "}"):
        text = text[1:-1].strip()
    return text


def _read_simple(text: str) -> Answer | None:
    value = exact_number(text)
    if value is not None:
        return Number(value, _decimals(text))
    numeral = _NUMERAL.fullmatch(text)
    if numeral and any(sign.isdigit() for sign in numeral[1]):
        return Numeral(re.sub(r"\\text\s*\{\s*", "", numeral[1]), int((numeral[2] or numeral[3])[:4]))
    if text in _EMPTY:
        return Listing((), is_set=True)
    if text == REALS:
        return _ALL_REALS
    without = _REALS_WITHOUT.fullmatch(text)
    point = None if without is None else exact_number(without[1].strip())
    if point is None:
        return None
    ends = Number(point, _decimals(text))
    return Union((Ordered((MINUS_INFINITY, ends), "(", ")"), Ordered((ends, INFINITY), "(", ")")))


def _decimals(number: str) -> int:
    return len(number.partition(".")[2]) if number.replace(".", "").lstrip("-").isdigit() else 0


def _read_words(text: str, depth: int) -> Answer | None:
    choice = _CHOICE.fullmatch(text)
    if choice:
        letter = choice[1] or choice[3] or choice[5]
        rest = choice[2] or choice[4] or choice[6] or ""
        if not rest.strip() or _is_choice_text(rest):
            return Text(letter.lower(), letter.upper())
    whole = _TEXT.fullmatch(text)
    if whole is None:
        is_word = _WORDS.fullmatch(text) and (_LONG_WORD.search(text) or (text.isupper() and len(text) > 1))
        return _text(text) if is_word and text.split()[0] not in FUNCTION_NAMES else None
    inner = whole[1].strip()
    if inner[:1] in ("\\", "-") or (inner[:1].isdigit() and "," not in inner):
        return read(inner, depth)
    items = [each.strip() for each in inner.split(",")]
    if len(items) > 1 and all(items):
        return Listing(tuple(read(f"\\text{{{each}}}", depth) for each in items))
    return _text(inner)


def _is_choice_text(rest: str) -> bool:
    return rest[0] in " \\." and split(rest, ",;") is not None


def _text(words: str) -> Answer:
    plain = plain_words(words)
    if plain == "infinity":
        return INFINITY
    if plain == "none":
        return Listing((), is_set=True)
    if plain in NUMBER_WORDS:
        return Number(Fraction(NUMBER_WORDS[plain]))
    return Text(plain, words.strip("(). ").upper() if len(plain) == 1 else "")


def _read_several(text: str, depth: int) -> Answer | None:
    parts = split(text, ("\\cup",))
    if len(parts) > 1:
        return Union(tuple(read(part, depth) for part in parts))
    parts = split(text, ",;")
    if 1 < len(parts) <= _MAX_ITEMS and all(part.strip() for part in parts):
        return Listing(tuple(read(part, depth) for part in parts))
    return None


def _read_enclosed(text: str, depth: int) -> Answer | None:
    matrix = _MATRIX.fullmatch(text)
    if matrix and "\\begin" not in matrix[2]:
        return _read_matrix(matrix[2], depth)
    if enclosed(text, "\\{", "\\}"):
        inner = text[2:-2]
        condition = re.split(r"\\mid|:|\|", inner, maxsplit=1)
        if len(condition) == 2 and len(split_relation(condition[1])[0]) > 1:
            return read(condition[1], depth)
        parts = split(inner, ",;")
        return Listing(tuple(read(part, depth) for part in parts), is_set=True) if len(parts) <= _MAX_ITEMS else None
    if enclosed(text, "\\langle", "\\rangle"):
        return Ordered(tuple(read(part, depth) for part in split(text[7:-7], ",;")), "(", ")")
    if text[0] in "([" and text[-1] in ")]" and enclosed(text, text[0], text[-1]):
        parts = split(text[1:-1], ",;")
        if 1 < len(parts) <= _MAX_ITEMS:
            return Ordered(tuple(read(part, depth) for part in parts), text[0], text[-1])
        if text[0] == "(" and text[-1] == ")":
            return read(text[1:-1], depth)
    return None


def _read_matrix(body: str, depth: int) -> Matrix | None:
    rows = [row for row in re.split(r"\\\\(?:\s*\[[^\]]*\])?", body) if row.replace("\\hline", "").strip()]
    cells = [row.replace("\\hline", "").split("&") for row in rows]
    if not cells or sum(map(len, cells)) > _MAX_ITEMS:
        return None
    return Matrix(tuple(tuple(read(cell, depth) for cell in row) for row in cells))


def _read_relation(text: str, depth: int) -> Answer | None:
    sides, signs = split_relation(text)
    if not signs or len(sides) > _MAX_ITEMS:
        return None
    if not sides[0].strip() and signs[0] in EQUATION_SIGNS and len(sides) == 2:
        return read(sides[1], depth)  # "= 5"
    if not all(side.strip() for side in sides):
        return None
    return Relation(tuple(read(side, depth) for side in sides), signs)


def _read_plus_minus(text: str, depth: int) -> Answer | None:
    if len(re.findall(r"\\(?:pm|mp)(?![a-zA-Z])", text)) != 1:
        return None
    both = [re.sub(r"\\(?:pm|mp)(?![a-zA-Z])\s*", sign, text) for sign in "+-"]
    return Listing(tuple(read(each.removeprefix("+"), depth) for each in both))


def _read_quantity(text: str, depth: int) -> Answer | None:
    compound = read_compound(text)
    if compound is not None:
        return Quantity(Number(compound[0]), compound[1])
    found = split_quantity(text)
    return None if found is None else Quantity(read(found[0], depth), found[1])

"""Units of measurement and currencies that may stand behind an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_INCH, _POUND = Fraction(254, 10_000), Fraction(45_359_237, 100_000_000)
_LENGTHS = {
    "m meter metre": Fraction(1), "mm millimeter millimetre": Fraction(1, 1000), "dm decimeter": Fraction(1, 10),
    "cm centimeter centimetre": Fraction(1, 100), "km kilometer kilometre": Fraction(1000),
    "in inch": _INCH, "ft foot feet": 12 * _INCH, "yd yard": 36 * _INCH, "mi mile": 63_360 * _INCH,
}  # fmt: skip
_OTHERS = {
    "mass": {
        "kg kilogram": Fraction(1), "g gram": Fraction(1, 1000), "mg milligram": Fraction(1, 10**6), "lb pound": _POUND,
        "oz ounce": _POUND / 16, "ton": 2000 * _POUND, "tonne": Fraction(1000),
    },
    "time": {
        "s sec second": Fraction(1), "min minute": Fraction(60), "h hr hour": Fraction(3600), "day": Fraction(86_400),
        "week": Fraction(604_800), "year yr": Fraction(31_557_600),
    },
    "volume": {"l liter litre": Fraction(1), "ml milliliter": Fraction(1, 1000)},
    "volume in gallons": {"gallon gal": Fraction(1)},
    "volume in cups": {"cup": Fraction(1)},
    "currency": {"$ dollar usd": Fraction(1), "cent": Fraction(1, 100)},
    "euro": {"\u20ac euro": Fraction(1)},
    "pound sterling": {"\u00a3": Fraction(1)},
    "angle": {"\u00b0 degree deg": Fraction(1)},
    "radian": {"radian rad": Fraction(1)},
    "speed": {"mph": Fraction(1)},
    "speed, metric": {"kmh kph": Fraction(1)},
    "temperature": {"celsius": Fraction(1), "fahrenheit": Fraction(1)},
    "acre": {"acre": Fraction(1)},
}  # fmt: skip
_SCALES = {
    name: (dimension, scale)
    for dimension, names in {"length": _LENGTHS, **_OTHERS}.items()
    for spellings, scale in names.items()
    for name in spellings.split()
}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
_MULTIPLES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*\\text\s*\{([^{}]*)\}")
_COMPOUND = re.compile(rf"(?:{_PART.pattern}\s*,?\s*){{2,4}}")
_WORD = re.compile("[a-zA-Z$\u20ac\u00a3\u00b0]+")


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit.

    dimension: what it measures, with its power; "" for words that measure nothing known, such as "apples".
    scale: size in the dimension's base unit.
    multiple: number in its name, such as that of "million dollars"; the scale includes it.
    """

    dimension: str
    scale: Fraction = Fraction(1)
    multiple: Fraction = Fraction(1)

    def factor_to(self, other: Unit) -> Fraction | None:
        """Factor of a number's conversion into another unit; None if the two measure different things.

        Words that measure nothing known count things, and fit every unit.
        """
        if not self.dimension or not other.dimension:
            return self.multiple / other.multiple
        return self.scale / other.scale if self.dimension == other.dimension else None


def read_unit(text: str) -> Unit:
    """Read a unit.

    Args:
        text: words behind (or a sign before) a number, such as "square cm", "cm^2", "dollars" or "apples".

    Returns:
        The unit.
    """
    power, multiple = 1, Fraction(1)
    text = re.sub(r"miles? per hour", "mph", re.sub(r"kilomet(?:er|re)s? per hour|km\s*/\s*h", "kmh", text))
    raised = re.search(r"\^\s*\{?\s*([23])\s*\}?", text)
    words = [word.lower() if len(word) > 1 else word for word in _WORD.findall(text)]
    for word in words:
        power *= _POWERS.get(word, 1)
        multiple *= _MULTIPLES.get(word, 1)
    if raised:
        power = int(raised[1])
    known = [found for word in words if (found := is_known(word))]
    # "feet per second" and "minutes of arc" are compounds that this table does not hold.
    if len(known) != 1 or any(word in ("per", "of") for word in words) or "/" in text:
        return Unit(" ".join(words) if len(known) > 1 else "", multiple, multiple)
    dimension, scale = known[0]
    return Unit(f"{dimension}^{power}" if power > 1 else dimension, scale**power * multiple, multiple)


def read_compound(text: str) -> tuple[Fraction, Unit] | None:
    r"""Read a quantity in several units, such as 3 \text{ hours } 20 \text{ minutes}.

    Args:
        text: a cleaned answer.

    Returns:
        Its value in the last unit, and this unit; None if it has another form or its units do not fit together.
    """
    if _COMPOUND.fullmatch(text) is None:
        return None
    parts = [(Fraction(number), read_unit(words.replace("and", ""))) for number, words in _PART.findall(text)]
    last = parts[-1][1]
    factors = [unit.factor_to(last) if unit.dimension else None for _, unit in parts]
    if None in factors:
        return None
    return sum((value * (factor or 0) for (value, _), factor in zip(parts, factors, strict=True)), Fraction(0)), last


def is_known(word: str) -> tuple[str, Fraction] | None:
    """Dimension and scale of a unit's name, plural or not; None if there is no such unit."""
    for name in (word, word.removesuffix("s"), word.removesuffix("es")):
        if name in _SCALES:
            return _SCALES[name]
    return None

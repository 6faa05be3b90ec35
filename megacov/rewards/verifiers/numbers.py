r"""Numbers in texts: integers, decimals, fractions, mixed numbers and scientific notation, also in LaTeX.

A number has an optional sign, which may stand before a currency sign: -$1,234.50. Commas stand between groups of three
digits. 1.5e3, 1.5 x 10^3, 1.5*10^3 and 1.5 \times 10^{3} are 1500; 3/4 and \frac{3}{4} are 0.75; 1 3/4 is 1.75. A
percent sign and units are not part of a number. Digits behind a letter, as in CO2, are none. A sign stands right before
the digits, and behind no letter, digit or bracket: 16-3 holds 16 and 3.
"""

from __future__ import annotations

import re
from fractions import Fraction

_LONGEST, _LARGEST_EXPONENT = 200, 400

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)"
_POWER = (
    r"(?:[eE](?P<e>[-+]?[0-9]+)(?![A-Za-z0-9])"
    r"|\s*(?:\\times|\\cdot|[x*])\s*10\s*\^\s*(?:\{\s*(?P<braced>[-+]?[0-9]+)\s*\}|(?P<bare>[-+]?[0-9]+)))"
)
_NUMBER = re.compile(
    rf"""
    (?<![A-Za-z0-9_])(?<![0-9]\.)
    (?P<sign>(?<![A-Za-z0-9)\]}}])[-+])?
    (?:\$\s?)?
    (?:
        \\[dt]?frac\s*\{{\s*(?P<over>[-+]?{_DIGITS})\s*\}}\s*\{{\s*(?P<under>{_DIGITS})\s*\}}
      | (?:(?P<whole>[0-9]+)\s)?(?P<top>{_DIGITS})\s?/\s?(?P<bottom>{_DIGITS})
      | (?P<plain>{_DIGITS}){_POWER}?
    )
    """,
    re.VERBOSE,
)


def find_numbers(text: str) -> list[Fraction | None]:
    """Find the numbers in a text, in the order in which they stand.

    Args:
        text: a response, or an answer.

    Returns:
        Their exact values; None for one that is too long or too large, or is divided by 0.
    """
    return [_value(match) for match in _NUMBER.finditer(_plain(text))]


def only_number(text: str) -> Fraction | None:
    """The number that a text consists of, perhaps with a currency or percent sign; None if it is anything else."""
    plain = _plain(text).strip().removesuffix("%").rstrip().strip("$")
    match = _NUMBER.fullmatch(plain)
    return None if match is None else _value(match)


def _plain(text: str) -> str:
    for latex, plain in (("{,}", ","), (r"\!", ""), (r"\,", ""), (r"\$", "$"), (r"\%", "%"), ("\u2212", "-")):
        text = text.replace(latex, plain)
    return text


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _LONGEST:
        return None
    sign = -1 if (match["sign"] or "").startswith("-") else 1
    if match["plain"] is not None:
        exponent = int(match["e"] or match["braced"] or match["bare"] or "0")
        if abs(exponent) > _LARGEST_EXPONENT:
            return None
        return sign * _decimal(match["plain"]) * Fraction(10) ** exponent
    over, under = (match["over"], match["under"]) if match["over"] else (match["top"], match["bottom"])
    if _decimal(under) == 0:
        return None
    return sign * (Fraction(match["whole"] or 0) + _decimal(over) / _decimal(under))


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))

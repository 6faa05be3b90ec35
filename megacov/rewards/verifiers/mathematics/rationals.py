"""Numbers that are written out: integers, decimals, fractions, mixed numbers, powers of ten. Exact."""

from __future__ import annotations

import re
from fractions import Fraction

_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(rf"([-+]?)\s*({_DECIMAL})")
_FRACTION = re.compile(rf"([-+]?)\s*(?:(\d+)\s*)?\\frac\s*\{{\s*(-?{_DECIMAL})\s*\}}\s*\{{\s*(-?{_DECIMAL})\s*\}}")
_SLASHED = re.compile(rf"([-+]?)\s*(?:(\d+)\s+)?({_DECIMAL})\s*/\s*({_DECIMAL})")
_SCIENTIFIC = re.compile(
    rf"([-+]?)\s*({_DECIMAL})\s*(?:[eE]([-+]?\d+)|(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{{\s*([-+]?\s*\d+)\s*\}}|(\d)))"
)
_POWER_OF_TEN = re.compile(r"([-+]?)\s*10\s*\^\s*(?:\{\s*(-?\d+)\s*\}|(\d))")
_THOUSANDS = re.compile(r"[-+]?\s*\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?")
_REPEATING = re.compile(r"([-+]?)\s*(\d*)\.(\d*)\s*\\overline\s*\{\s*(\d+)\s*\}")

_MAX_DIGITS = 1000
_MAX_EXPONENT = 1000


def exact_number(text: str) -> Fraction | None:
    """Read a number that is written out.

    Args:
        text: a cleaned answer, such as "-3", "0.25", r"\\frac{1}{2}", "1/2", r"2\\frac{1}{2}", "1,080" or "1.5e3".

    Returns:
        Its value; None for everything else, and for numbers of more than 1,000 digits.
    """
    if len(text) > _MAX_DIGITS or not text or text[-1] not in "0123456789}.":
        return None
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    found = _NUMBER.fullmatch(text)
    if found:
        return _signed(found[1], Fraction(found[2]))
    for pattern, read in (
        (_FRACTION, _fraction),
        (_SLASHED, _fraction),
        (_SCIENTIFIC, _scientific),
        (_POWER_OF_TEN, _power_of_ten),
        (_REPEATING, _repeating),
    ):
        found = pattern.fullmatch(text)
        if found:
            return read(found)
    return None


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def _fraction(found: re.Match[str]) -> Fraction | None:
    sign, whole, above, below = found.groups()
    if Fraction(below) == 0 or (whole is not None and (above[0] == "-" or below[0] == "-")):
        return None
    return _signed(sign, int(whole or 0) + Fraction(above) / Fraction(below))


def _scientific(found: re.Match[str]) -> Fraction | None:
    sign, mantissa, *exponents = found.groups()
    exponent = int(next(each for each in exponents if each is not None).replace(" ", ""))
    return _signed(sign, Fraction(mantissa) * Fraction(10) ** exponent) if abs(exponent) <= _MAX_EXPONENT else None


def _power_of_ten(found: re.Match[str]) -> Fraction | None:
    exponent = int(found[2] or found[3])
    return _signed(found[1], Fraction(10) ** exponent) if abs(exponent) <= _MAX_EXPONENT else None


def _repeating(found: re.Match[str]) -> Fraction:
    sign, whole, fixed, period = found.groups()
    scale = Fraction(10) ** len(fixed)
    fraction = Fraction(int(fixed or 0)) + Fraction(int(period), 10 ** len(period) - 1)
    return _signed(sign, int(whole or 0) + fraction / scale)

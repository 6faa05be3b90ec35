"""Cuts an answer into a number and its unit."""

from __future__ import annotations

import re

from megacov.rewards.verifiers.mathematics.latex import DEGREE, PERCENT
from megacov.rewards.verifiers.mathematics.units import Unit, is_known, read_unit

_TEXT_UNIT = re.compile(
    r"(.*?[^\s{(])\s*(?:\\cdot|\\times)?\s*\\text\s*\{([^{}]*)\}(\s*\^\s*\{?\s*\d\s*\}?)?(?:\s*\([^()]*\))?"
)
_PLAIN_UNIT = re.compile(r"(.*[\d})])\s*?( ?[A-Za-z][A-Za-z. ]*?)(\s*\^\s*\{?\s*[23]\s*\}?)?")
_CURRENCY = re.compile(r"(-?)\s*(\\\$|[\u20ac\u00a3])\s*(.+)")
_TEMPERATURE = re.compile(rf"(.*\S)\s*{DEGREE}\s*(?:\\text\s*\{{\s*([CF])\s*\}}|([CF]))")
_TIME_OF_DAY = re.compile(r"(\d{1,2}(?::\d{2}){0,2})\s*(?:\\text\s*\{\s*)?([ap])\.?\s*m\.?\s*\}?", re.IGNORECASE)
_THOUSANDS = re.compile(r"(-?\s*(?:\\\$|[\u20ac\u00a3])?\s*)(\d{1,3}(?:,\d{3})+)((?:\.\d+)?)([^,\d]*)")
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_MATHEMATICS = re.compile(r"\d|\\pi|\\sqrt|\\frac")
FUNCTION_NAMES = frozenset(["sin", "cos", "tan", "log", "ln", "sec", "csc", "cot", "exp", "sqrt", "pi", "mod"])
"""Words that are no units."""


def without_thousands(text: str) -> str:
    r"""Remove the commas of "\$1,080" and "1,080 apples". Without currency or unit, they may separate a list."""
    found = _THOUSANDS.fullmatch(text)
    if found is None or not ("$" in found[1] or not found[1].isascii() or found[4].strip()):
        return text
    return found[1] + found[2].replace(",", "") + found[3] + found[4]


def split_quantity(text: str) -> tuple[str, Unit | None] | None:
    """Cut off a unit.

    Args:
        text: a cleaned answer.

    Returns:
        The text of the number and its unit, None for percent; None if there is no unit.
    """
    if text.endswith(PERCENT):
        return (text[:-1], None) if text[:-1].strip() else None
    temperature = _TEMPERATURE.fullmatch(text)
    if temperature:
        return temperature[1], Unit({"C": "celsius", "F": "fahrenheit"}[temperature[2] or temperature[3]])
    if text.endswith(DEGREE) and text.count(DEGREE) == 1 and not _FUNCTION.search(text):
        return text[:-1], Unit("angle")
    currency = _CURRENCY.fullmatch(text)
    if currency:
        unit, inner = read_unit(currency[2].strip("\\")), split_quantity(currency[3])
        if inner is None or inner[1] is None or inner[1].multiple == 1:
            return currency[1] + currency[3], unit
        return currency[1] + inner[0], Unit(unit.dimension, unit.scale * inner[1].multiple, inner[1].multiple)
    time = _TIME_OF_DAY.fullmatch(text)
    if time:
        return time[1], Unit(f"{time[2].lower()}m")
    found = _TEXT_UNIT.fullmatch(text)
    if found and _MATHEMATICS.search(found[1]):
        return found[1], read_unit(found[2] + (found[3] or ""))
    found = _PLAIN_UNIT.fullmatch(text)
    if found and _is_plain_unit(found[2]):
        return found[1], read_unit(found[2] + (found[3] or ""))
    return None


def _is_plain_unit(words: str) -> bool:
    first = words.split()[0].strip(".")
    if first in FUNCTION_NAMES or any(len(word) == 1 for word in words.split()[1:]):
        return False
    return len(first) > 3 or (is_known(first) is not None and (len(first) > 1 or words[0] == " "))

"""Cuts an answer at signs that stand outside of all brackets."""

from __future__ import annotations

import re
from collections.abc import Collection

_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[{}()\[\],;=<>!:]", re.DOTALL)
_OPENING = {"{", "(", "[", "\\{", "\\langle", "\\begin", "\\lfloor", "\\lceil"}
_CLOSING = {"}", ")", "]", "\\}", "\\rangle", "\\end", "\\rfloor", "\\rceil"}
EQUATION_SIGNS = ("=", "\\approx", "\\equiv", "\\in")
_RELATIONS = {*EQUATION_SIGNS, "<", ">", "\\le", "\\ge", "\\ne"}


def split(text: str, separators: Collection[str]) -> list[str]:
    """Cut at separators outside of brackets; all of the text is one part if its brackets do not match."""
    return _cut(text, set(separators))[0]


def split_relation(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Cut at signs of relations outside of brackets.

    Args:
        text: a cleaned answer.

    Returns:
        The sides, and the signs between them.
    """
    sides, signs = _cut(text, _RELATIONS)
    return tuple(sides), tuple(signs)


def _cut(text: str, separators: set[str]) -> tuple[list[str], list[str]]:
    parts, signs, depth, begin = [], [], 0, 0
    for token in _TOKEN.finditer(text):
        sign = token[0]
        depth += (sign in _OPENING) - (sign in _CLOSING)
        if depth < 0:
            return [text], []
        if depth == 0 and sign in separators:
            parts.append(text[begin : token.start()])
            signs.append(sign)
            begin = token.end()
    if depth:
        return [text], []
    return [*parts, text[begin:]], signs


def enclosed(text: str, left: str, right: str) -> bool:
    """Whether a text begins with a bracket whose partner ends it."""
    if not text.startswith(left) or not text.endswith(right) or len(text) < len(left) + len(right):
        return False
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += (token[0] in _OPENING) - (token[0] in _CLOSING)
        if depth == 0:
            return token.end() == len(text)
    return False

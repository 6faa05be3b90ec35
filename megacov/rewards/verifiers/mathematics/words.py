"""Answers in words, without what does not matter."""

from __future__ import annotations

import re

_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty"""
NUMBER_WORDS = {word: number for number, word in enumerate(_NUMBERS.split())}
"""Values of the words from zero to twenty."""
_ARTICLE = re.compile(r"^(?:to )?(?:the|an?) (?=\w)")
_NONE = ("no solution", "no solutions", "no real solution", "no real solutions")


def plain_words(words: str) -> str:
    """Words in lower case, without punctuation and a leading article; the phrases for no solution are "none"."""
    plain = _ARTICLE.sub("", " ".join(re.sub(r"[^\w\s]", " ", words.lower()).split()))
    return "none" if plain in _NONE else plain

"""The answer that a response gives, for votes: maj@k counts responses whose answers are equal as texts."""

from __future__ import annotations

import re

from megacov.config.suite import Extraction

_BOX = "\\boxed{"
_BRACES = re.compile(r"\\boxed\{|[{}]")
_BLANKS = re.compile(r"\s+")
_ENDS = " .$"


def extract_answer(text: str, how: Extraction) -> str | None:
    """Find the answer of a response.

    Args:
        text: the response.
        how: in the last complete \\boxed{}, after the last ####, or the whole text.

    Returns:
        The answer without blanks, dollar signs and full stops around it and without thousands separators in plain
        numbers; None if there is none. `1/2` and `0.5` are two answers.
    """
    found = {"boxed": _boxed, "gsm8k": _after_marks, "text": str}[how](text)
    if found is None:
        return None
    answer = _BLANKS.sub(" ", found).strip(_ENDS)
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", answer):
        answer = answer.replace(",", "")
    return answer or None


def _boxed(text: str) -> str | None:
    """The content of the last box that is closed, in one pass over the text, whatever it repeats."""
    is_box_at: list[tuple[int, bool]] = []
    begin = end = -1
    for place in _BRACES.finditer(text):
        if place[0] != "}":
            is_box_at.append((place.end(), place[0] == _BOX))
        elif is_box_at:
            start, is_box = is_box_at.pop()
            if is_box and start > begin:
                begin, end = start, place.start()
    return text[begin:end] if begin >= 0 else None


def _after_marks(text: str) -> str | None:
    _, marks, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0] if marks else None

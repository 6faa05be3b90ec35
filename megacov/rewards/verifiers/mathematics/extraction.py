"""The answer of a response: what stands in its last box, or where else the settings allow."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
# Between boxes that are one answer: "\boxed{1}$ and $\boxed{2}".
_BETWEEN = re.compile(
    r"(?:\s|[$,;&]|\\[\[\]();,!:]|\\q?quad\b|\\text\s*\{\s*(?:,?\s*(?:and|or)|,)\s*\}|\b(?:and|or)\b)*"
)
_WITHOUT_BRACES = re.compile(r"\\[a-zA-Z]+(?:\{[^{}]*\})*|[^\s$\\{}]+")
_ANSWER_LINE = re.compile(r"^[\s*_#>]*(?:final\s+)?answer[\s*_]*[:=][\s*_]*(.*\S)", re.IGNORECASE)
_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)

MAX_ANSWER = 4000
"""Longest text that counts as an answer. [characters]"""
_MAX_BOXES = 32  # looked at, from the end: an answer of more boxes is none
_TAIL = 20_000  # characters in which a fallback looks for the answer


def last_answers(text: str, *, fallback: str) -> tuple[str, ...]:
    """Extract the answer of a response, which may stand in several boxes.

    The last box with balanced braces counts; boxes that only "and", "or", commas or mathematics signs separate from it
    belong to it.

    Args:
        text: the response.
        fallback: where the answer may stand if there is no box: "none" (nowhere), "answer_line" (the last line that
            begins with "Answer:"), or "last_math" (there, or else in the last mathematics between dollar signs).

    Returns:
        The answer, perhaps an empty one, or the contents of several boxes without repetitions; () if there is none.
    """
    boxes = _last_boxes(text)
    if boxes:
        return tuple(dict.fromkeys(boxes))
    if fallback == "none" or _BOX.search(text):
        return ()  # a response that was cut inside of its box has given no answer
    tail = text[-_TAIL:]
    for line in reversed(tail.splitlines()):
        found = _ANSWER_LINE.match(line[: 2 * MAX_ANSWER])
        if found:
            return (found[1].rstrip("*_ "),)
    if fallback == "last_math":
        groups = [found.groups() for found in _MATH.finditer(tail)]
        if groups:
            return (next(group for group in groups[-1] if group is not None),)
    return ()


def _last_boxes(text: str) -> list[str]:
    """Contents of the last box and of those that belong to it, in their order."""
    contents: list[str] = []
    begin = len(text)
    for start, inside, end in _boxes_from_the_end(text):
        if contents and not _belongs(text, end, begin):
            break
        contents.append(inside)
        begin = start
    return contents[::-1]


def _belongs(text: str, end: int, begin: int) -> bool:
    return begin - end <= 60 and _BETWEEN.fullmatch(text, end, begin) is not None


def _boxes_from_the_end(text: str) -> Iterator[tuple[int, str, int]]:
    """Outermost boxes as (start, content, end), the last one first."""
    pending: tuple[int, str, int] | None = None
    before = len(text)
    for _ in range(_MAX_BOXES):
        start = max(
            text.rfind("\\boxed", 0, before), text.rfind("\\fbox", 0, before), text.rfind("\\framebox", 0, before)
        )
        if start < 0:
            break
        before = start
        box = _box_at(text, start)
        if box is None:
            continue
        if pending is not None and box[2] <= pending[0]:
            yield pending
        pending = box
    if pending is not None:
        yield pending


def _box_at(text: str, start: int) -> tuple[int, str, int] | None:
    """The box that begins at `start`, or None if its braces are not balanced."""
    command = _BOX.match(text, start)
    if command is None:
        return None
    begin = command.end()
    if text[begin : begin + 1] != "{":
        token = _WITHOUT_BRACES.match(text, begin)
        return (start, token[0].rstrip(".,;:"), token.end()) if token else None
    depth = 0
    for brace in _BRACES.finditer(text, begin, begin + MAX_ANSWER):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return start, text[begin + 1 : brace.start()].strip(), brace.end()
    return None

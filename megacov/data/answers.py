"""Gold answers as data sets write them: on their own, after ####, or in a box."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from megacov.data.rows import RowError

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_LONGEST_WITHOUT_BRACES = 1000
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def read_answer(value: Any, *, field: str, form: str) -> str:
    """Take the gold answer out of a field.

    Args:
        value: content of the field.
        field: its name, for messages.
        form: "plain" takes the whole text; "gsm8k" what follows the last ####, without commas between thousands;
            "boxed" the content of the last \\boxed{} or \\fbox{}.

    Returns:
        The answer. A number is written as Python writes it: 27.0 is "27.0".

    Raises:
        RowError: the field holds no text and no finite number, or has no answer of that form.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise RowError(f": the answer in field {field!r} is a {type(value).__name__}; it must be a text or a number.")
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise RowError(f": the answer in field {field!r} is {str(value).lower()}, which is no answer.")
    text = str(value)
    if form == "gsm8k":
        _, mark, answer = text.rpartition("####")
        if not mark or not answer.strip():
            raise RowError(f": the answer in field {field!r} has nothing after ####; set data.answer_format=plain.")
        return _THOUSANDS.sub("", answer.strip())
    if form == "boxed":
        found = last_boxed(text)
        if found is None:
            raise RowError(f": the answer in field {field!r} has no \\boxed{{}}; set data.answer_format=plain.")
        return found
    return text


def last_boxed(text: str) -> str | None:
    """Content of the last \\boxed{} or \\fbox{} with balanced braces; None if there is none, or it is empty.

    Some solutions of MATH write `\\boxed 5`, whose content ends at the dollar sign or at the end of the line.
    """
    closing = _closing_braces(text)
    for match in reversed(list(_BOX.finditer(text))):
        start = match.end()
        if text[start : start + 1] != "{":
            content = (
                re.split(r"[$\n]", text[start : start + _LONGEST_WITHOUT_BRACES], maxsplit=1)[0].strip().rstrip(".")
            )
        else:
            content = text[start + 1 : closing[start]].strip() if start in closing else ""
        if content:
            return content
    return None


def _closing_braces(text: str) -> dict[int, int]:
    """Places of braces -> places of those that close them; `\\{` and `\\}` are signs of a set, and nest nothing."""
    closing, waiting = {}, list[int]()
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            waiting.append(match.start())
        elif match[0] == "}" and waiting:
            closing[waiting.pop()] = match.start()
    return closing

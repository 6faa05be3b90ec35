r"""The last \boxed{} of a response."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def last_boxed(text: str) -> str | None:
    r"""Find the content of the last \boxed{} or \fbox{}.

    Args:
        text: response.

    Returns:
        The content without blanks around it, "" for an empty box or one whose braces are not closed; None without a
        box.
    """
    start = None
    for match in _BOX.finditer(text):
        start = match.end()
    if start is None:
        return None
    depth, place = 1, start
    while place < len(text):
        if text[place] == "\\":  # \{ and \} stand for themselves
            place += 1
        elif text[place] in "{}":
            depth += 1 if text[place] == "{" else -1
            if depth == 0:
                return text[start:place].strip()
        place += 1
    return ""

"""Text of a model, made safe for a terminal: what would steer the terminal or hide from the reader is spelt out."""

from __future__ import annotations

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str, *, ascii_only: bool = False) -> str:
    r"""The same text, with an escape such as \x1b or \u202e for every character that is not printable.

    Those are control characters, escape sequences with them, marks that change the direction of writing, characters
    without width, separators other than the space, and code points that are not assigned.

    Args:
        text: anything, half of a surrogate pair included.
        ascii_only: whether the terminal shows nothing else; all other characters are spelt out too.

    Returns:
        Printable characters only.
    """
    if text.isprintable() and (text.isascii() or not ascii_only):
        return text
    return "".join(
        char if char.isprintable() and (char.isascii() or not ascii_only) else _escape(char) for char in text
    )


def _escape(char: str) -> str:
    code = ord(char)
    if char in _SHORT:
        return _SHORT[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

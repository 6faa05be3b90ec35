"""Text and numbers for a page. Whatever a model, a file or a user wrote becomes text there, and nothing else."""

from __future__ import annotations

import html
import json
import math
import re

# Characters that a reader cannot see, or that reorder others. Joiners stay: scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def show_hidden(text: str) -> str:
    """The text with characters that cannot be seen, or that no file can hold, spelled out as in \\u202e."""
    return _HIDDEN.sub(lambda found: _spelled(ord(found[0])), text)


def _spelled(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape(text: str) -> str:
    """Text for an element or for a quoted attribute; hidden characters are spelled out."""
    return html.escape(show_hidden(text), quote=True)


def to_script(value: object) -> str:
    """A value as JSON for an element `script` of a type that is no program.

    Nothing in it can end the element or begin another: `<`, `>` and `&` are written as escapes of JSON.

    Args:
        value: dicts, lists, text, finite numbers, booleans and None.

    Returns:
        JSON without blanks, which any encoding can hold.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def number(value: float, *, digits: int = 4) -> str:
    """A number as a person reads it, with this many significant digits; "none" for NaN."""
    if math.isnan(value):
        return "none"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    if 1e-4 <= abs(value) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.{digits - 1}e}"


def count(amount: int, what: str) -> str:
    """An amount with its noun, in the plural unless it is one."""
    return f"{amount:,} {what}{'' if amount == 1 else 's'}"

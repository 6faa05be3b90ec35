"""JSON from outside, within bounds: whatever the text, reading it takes little time and memory and ends in one phrase.

Python's own reader takes NaN for a number, half of a surrogate pair for a character that no file can hold, and fails
with other exceptions than ValueError where lists are nested too deeply.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16 * 2**20
MAX_DEPTH = 64
MAX_DIGITS = 300  # the largest float has 309

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """The text is not JSON, or is beyond the bounds; the message is a phrase such as "it is nested too deeply"."""


def parse_json(text: str | bytes, *, allows_nan: bool = False, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read one JSON value.

    Args:
        text: JSON, in UTF-8 if it is bytes.
        allows_nan: whether NaN and the infinities are numbers.
        max_bytes: longest text. [bytes, or characters of a str]

    Returns:
        Dicts, lists, text that can be encoded, numbers, booleans and None, at most MAX_DEPTH deep.

    Raises:
        JsonError: the text is not JSON, or is beyond the bounds.
    """
    if len(text) > max_bytes:
        raise JsonError(f"it has more than {max_bytes} bytes")
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(
            decoded,
            parse_int=_to_int,
            parse_float=float if allows_nan else _to_float,
            parse_constant=None if allows_nan else _refuse_constant,
        )
    except RecursionError:
        raise JsonError(f"it is nested more than {MAX_DEPTH} deep") from None
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise JsonError(str(error)) from None
    _check_depth(value)
    if _SURROGATE.search(decoded):
        _check_surrogates(value)
    return value


def read_json(path: Path, *, allows_nan: bool = False, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a file of one JSON value, as `parse_json` does. OSError passes through."""
    with path.open("rb") as file:
        return parse_json(file.read(max_bytes + 1), allows_nan=allows_nan, max_bytes=max_bytes)


def _to_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _to_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonError(f"it has the number {digits[:40]}, which is too large")
    return value


def _refuse_constant(name: str) -> float:
    raise JsonError(f"it has {name} where a number belongs")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise JsonError(f"it is nested more than {MAX_DEPTH} deep")


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise JsonError("it has half of a surrogate pair (such as \\ud800), which is no character") from None

"""Rows of a prompt file: an entry of reasoning-gym as JSON, and back without loss.

Scorers compare what an entry holds with Python's ==, look it up by integers, or count with it. JSON has neither tuples,
nor keys that are no text, nor fractions; they are written as an object with one key that begins with a dollar sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from megacov.errors import DataError

_FIELDS = {"prompt": str, "task": str, "settings": dict, "version": str}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a prompt file, read back.

    task: name of the task.
    settings: settings of the task that differ from its defaults.
    version: version of reasoning-gym that wrote it.
    question: text of the question.
    metadata: what the scorer needs besides the right answer.
    """

    task: str
    settings: dict[str, Any]
    version: str
    question: str
    metadata: Any


def read_row(row: Mapping[str, Any]) -> Row:
    """Read what `megacov make-prompts` wrote.

    Args:
        row: object of one line of the file.

    Returns:
        The row.

    Raises:
        DataError: a field is missing or holds something else.
    """
    for name, kind in _FIELDS.items():
        if not isinstance(row.get(name), kind):
            raise DataError(
                f"A row for the verifier reasoning_gym needs the field {name!r}: write the file with "
                "megacov make-prompts."
            )
    try:
        metadata = decode(row.get("metadata"))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise DataError(
            "The field 'metadata' of a row for the verifier reasoning_gym is damaged: write the file again with "
            "megacov make-prompts."
        ) from error
    return Row(row["task"], row["settings"], row["version"], row["prompt"], metadata)


def encode(value: Any) -> Any:
    """Turn a value of an entry into one that JSON holds without loss.

    Args:
        value: text, numbers, None, lists, tuples, dicts, fractions and NumPy scalars, nested.

    Returns:
        The value for JSON.

    Raises:
        TypeError: a value of another type.
    """
    if type(value) in (str, int, float, bool, type(None)):
        return value
    if isinstance(value, list):
        return [encode(each) for each in value]
    if isinstance(value, tuple):
        return {"$tuple": [encode(each) for each in value]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encode(each) for key, each in value.items()}
        return {"$items": [[encode(key), encode(each)] for key, each in value.items()]}
    if isinstance(value, Fraction):
        return {"$fraction": str(value)}
    if hasattr(value, "item"):  # NumPy's scalars
        return encode(value.item())
    raise TypeError(f"a value of type {type(value).__name__} has no form in JSON")


def decode(value: Any) -> Any:
    """Undo `encode`.

    Args:
        value: what it returned, read from JSON.

    Returns:
        The value, with Python's numbers in place of NumPy's.

    Raises:
        ValueError: an object begins with an unknown dollar sign, or a fraction is none.
        TypeError: such an object holds something else than it must.
    """
    if isinstance(value, list):
        return [decode(each) for each in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$tuple": parts}:
            return tuple(decode(each) for each in parts)
        case {"$items": parts}:
            return {decode(key): decode(each) for key, each in parts}
        case {"$fraction": text}:
            return Fraction(text)
    if any(key.startswith("$") for key in value):
        raise ValueError(f"unknown form {next(iter(value))}")
    return {key: decode(each) for key, each in value.items()}

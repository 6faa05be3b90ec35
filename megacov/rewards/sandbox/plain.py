"""Plain data of Python as JSON and back, so that values pass between programs without pickle."""

from __future__ import annotations

from typing import Any

_LONGEST_INT = 10_000  # bits; Python refuses to read much longer ones from decimal digits
_DEEPEST = 200


def to_json(value: Any, depth: int = 0) -> Any:
    """A value as something that JSON can hold.

    Args:
        value: numbers, text, bytes, None, and lists, tuples, sets and dictionaries of them; NumPy's arrays and numbers
            pass as lists and numbers.
        depth: number of containers around it.

    Returns:
        Null, booleans, short integers, finite numbers, text and lists as they are; anything else as an object with one
        key.

    Raises:
        TypeError: it is something else.
        ValueError: it is nested too deeply.
    """
    if depth > _DEEPEST:
        raise ValueError(f"values are nested more than {_DEEPEST} deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _LONGEST_INT else {"int": hex(value)}
    if isinstance(value, float):
        number = float(value)
        return number if abs(number) < float("inf") else {"float": repr(number)}
    if isinstance(value, str):
        return str.__str__(value)
    return _container_to_json(value, depth + 1)


def _container_to_json(value: Any, depth: int) -> Any:
    if isinstance(value, complex):
        return {"complex": [to_json(value.real), to_json(value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, list):
        return [to_json(each, depth) for each in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [to_json(each, depth) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[to_json(key, depth), to_json(each, depth)] for key, each in value.items()]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if hasattr(value, "tolist"):
        return to_json(value.tolist(), depth)
    raise TypeError(f"a {type(value).__name__} is no plain data")


def from_json(content: Any) -> Any:
    """The value that `to_json` has turned into `content`; raises ValueError or TypeError for anything else."""
    if isinstance(content, list):
        return [from_json(each) for each in content]
    if not isinstance(content, dict):
        return content
    if len(content) != 1:
        raise ValueError("an object must have one key")
    [(kind, inner)] = content.items()
    match kind:
        case "int":
            return int(inner, 16)
        case "float":
            return float(inner)
        case "complex":
            real, imaginary = inner
            return complex(from_json(real), from_json(imaginary))
        case "bytes":
            return bytes.fromhex(inner)
        case "tuple" | "set" | "frozenset":
            kinds: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}
            return kinds[kind](from_json(inner))
        case "dict":
            return {from_json(key): from_json(each) for key, each in inner}
        case "range":
            return range(*inner)
    raise ValueError(f"no plain data is called {kind!r}")

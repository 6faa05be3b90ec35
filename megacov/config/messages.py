"""One sentence for each mistake in a configuration, from pydantic's list of mistakes."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from megacov.config.data import Paths
from megacov.config.fields import UNION_KEY, Place, locate, members, sections_in, sections_in_list, walk_values
from megacov.config.section import Section, allows_none, value_type

_BOUNDS = ((Gt, "gt", "above"), (Ge, "ge", "at least"), (Lt, "lt", "below"), (Le, "le", "at most"))
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_PATHS = value_type(Paths)
# If a required key is misspelt, it is missing as well, so the misspelling is reported first.
_ORDER = ("extra_forbidden", "union_tag_invalid", "union_tag_not_found", "missing")


def first_sentence(error: ValidationError, root: type[Section]) -> str:
    """Describe the most telling mistake in a configuration.

    Args:
        error: pydantic's list of mistakes.
        root: class of the whole configuration.

    Returns:
        A sentence with the path, the value, and the necessary change; then the paths of further mistakes.
    """
    details = [each for each in error.errors() if each["type"] != "default_factory_not_called"]
    details.sort(key=lambda each: _ORDER.index(each["type"]) if each["type"] in _ORDER else len(_ORDER))
    sentence = _sentence(details[0], root)
    others = dict.fromkeys(locate(root, each["loc"]).path for each in details[1:])
    return _in_one_line(sentence + (f" Also wrong: {join_names(others)}." if others else ""))


def _in_one_line(sentence: str) -> str:
    """The sentence without the line breaks and half characters that a key may hold, and of a length that is read."""
    line = " ".join(sentence.split()).encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= 1000 else f"{line[:700]} ... {line[-250:]}"


def join_names(names: Iterable[str], last: str = "and") -> str:
    """Join names as in "a, b and c", with `last` as the word before the last name."""
    *head, tail = names
    return f"{', '.join(head)} {last} {tail}" if head else tail


def expected(field: FieldInfo) -> str:
    """The valid content of a field in words, as in "a number, above 0 and at most 1 [fraction]"."""
    inner = sections_in(field)
    if inner:
        keys = dict.fromkeys(key for section in inner for key in section.model_fields)
        return f"a section with keys such as {', '.join(list(keys)[:3])}"
    plain = value_type(field.annotation)
    if get_origin(plain) is Literal:
        text = join_names((str(choice) for choice in get_args(plain)), "or")
    elif plain == _PATHS:
        text = "a path or an address, or a list of them"
    elif sections_in_list(field):
        entry = sections_in_list(field)[0]
        text = f"a list of sections with keys such as {', '.join(list(entry.model_fields)[:3])}"
    elif get_origin(plain) is tuple:
        text = "a list in brackets, such as [a, b]"
    elif get_origin(plain) is dict:
        text = "a mapping of names to single values, such as {a: b}"
    else:
        bounds = _bounds(field)
        text = f"{_KINDS[plain]}, {join_names(bounds)}" if bounds else _KINDS[plain]
    if any(isinstance(item, MinLen) for item in field.metadata):
        text += " that is not empty"
    unit = unit_of(field)
    return text + (f" [{unit}]" if unit else "") + (", or null" if allows_none(field.annotation) else "")


def unit_of(field: FieldInfo) -> str | None:
    """The unit at the end of a field's description, as in "tokens"; None if there is none."""
    text = field.description or ""
    return text[text.rindex("[") + 1 : -1] if text.endswith("]") else None


def _bounds(field: FieldInfo) -> list[str]:
    return [
        f"{word} {getattr(item, attribute)}"
        for kind, attribute, word in _BOUNDS
        for item in field.metadata
        if isinstance(item, kind)
    ]


def _sentence(detail: ErrorDetails, root: type[Section]) -> str:
    place, value = locate(root, detail["loc"]), detail["input"]
    if not detail["loc"] and detail["type"] == "value_error":  # of a validator of the root itself
        return str(detail["ctx"]["error"])
    if place.field is None:
        return _unknown_key(place, root)
    match detail["type"]:
        case "missing":
            return f"{place.path} is missing: add it; it must be {expected(place.field)}."
        case "union_tag_not_found" if isinstance(value, dict):
            return f"{place.path}.{UNION_KEY} is missing: set it to {join_names(members(place.field), 'or')}."
        case "union_tag_invalid":
            return _unknown_name(place.path, str(detail["ctx"]["tag"]), members(place.field))
        case "value_error":
            # One of our own validators. If it checks a whole section, its sentence names the values.
            shown = "" if isinstance(value, dict) else f" is {show(value)}"
            return f"{place.path}{shown}: {detail['ctx']['error']}"
    is_item = isinstance(detail["loc"][-1], int)
    needed = _expected_item(place.field, detail) if is_item else expected(place.field)
    sentence = f"{place.path} is {show(value)}: it must be {needed}."
    if detail["type"] in ("string_type", "path_type") and isinstance(value, (int, float)):
        sentence += f' Quote it to make it text: "{show(value)}".'
    return sentence


def _expected_item(field: FieldInfo, detail: ErrorDetails) -> str:
    """The form that an entry of a list must have, in words."""
    if sections_in_list(field):
        return f"a section with keys such as {', '.join(list(sections_in_list(field)[0].model_fields)[:3])}"
    annotation = value_type(field.annotation)
    item = value_type(get_args(annotation)[0]) if get_origin(annotation) is tuple else str
    least = detail.get("ctx", {}).get("ge")
    return _KINDS.get(item, _KINDS[str]) + ("" if least is None else f", at least {least}")


def _unknown_key(place: Place, root: type[Section]) -> str:
    parent, dot, key = place.path.rpartition(".")
    near = get_close_matches(key, place.section.model_fields, n=1)
    if near:
        return f"{place.path} is not a setting: did you mean {parent}{dot}{near[0]}?"
    elsewhere = [other for other in walk_values(root) if other.path.rpartition(".")[2] == key]
    owners = [_name_of(other.section) for other in elsewhere if other.path == place.path]
    if owners:
        chooser, own_name, others = f"{parent}.{UNION_KEY}", _name_of(place.section), join_names(owners, "or")
        return f"{place.path} is not a setting if {chooser} is {own_name}: remove it, or set {chooser} to {others}."
    if elsewhere:
        paths = dict.fromkeys(other.path for other in elsewhere)
        return f"{place.path} is not a setting: did you mean {join_names(paths, 'or')}?"
    known = join_names(place.section.model_fields)
    return f"{place.path} is not a setting: remove it; {parent or 'a configuration'} has {known}."


def _unknown_name(path: str, name: str, forms: Iterable[str]) -> str:
    near = get_close_matches(name, forms, n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    return f"{path}.{UNION_KEY} is {name}{guess}: set it to {join_names(forms, 'or')}."


def _name_of(section: type[Section]) -> str:
    """The name that chooses this form of a section; empty for a section with one form."""
    field = section.model_fields.get(UNION_KEY)
    return str(get_args(field.annotation)[0]) if field and get_origin(field.annotation) is Literal else ""


def show(value: Any) -> str:
    """A value as a user would write it, cut to 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value) if isinstance(value, (int, float, Path)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

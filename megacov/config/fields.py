"""The schema as a tree in which sections, fields and keys are found by their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from megacov.config.section import Section, value_type

UNION_KEY = "name"
"""The key that chooses the member of a section with several forms, as in `algorithm.loss.name`."""


@dataclass(frozen=True)
class Place:
    """Place of something in a configuration.

    path: dotted path, as a user writes it.
    section: the section that holds the last key.
    field: field of the last key; None if the section has no such key.
    """

    path: str
    section: type[Section]
    field: FieldInfo | None


def members(field: FieldInfo) -> dict[str, type[Section]]:
    """The forms of a section: classes by the value of their `name`. Empty if the field offers no such choice.

    The form whose `name` is free goes by its tag.
    """
    if field.discriminator is None:
        return {}
    found = {}
    for member in get_args(field.annotation):
        # A member that is chosen by a function carries its tag beside it; another's tag is the Literal of its name.
        section, *tags = get_args(member) or (member,)
        names = [tag.tag for tag in tags] or get_args(section.model_fields[UNION_KEY].annotation)
        found[names[0]] = section
    return found


def sections_in(field: FieldInfo) -> tuple[type[Section], ...]:
    """The section classes that a field may hold: one for a plain section, several for a choice, none for a value."""
    plain = value_type(field.annotation)
    if isinstance(plain, type) and issubclass(plain, Section):
        return (plain,)
    return tuple(members(field).values())


def sections_in_list(field: FieldInfo) -> tuple[type[Section], ...]:
    """The class of a list's entries if they are sections, as in `data.sources`; else none."""
    plain = value_type(field.annotation)
    entry = get_args(plain)[0] if get_origin(plain) is tuple else None
    return (entry,) if isinstance(entry, type) and issubclass(entry, Section) else ()


def locate(root: type[Section], location: Sequence[Any]) -> Place:
    """Find the place that pydantic names.

    Args:
        root: class of the whole configuration.
        location: keys and list indices; after a choice of forms, pydantic inserts the chosen name, which is not a key.

    Returns:
        The place, with a path that a user can write.
    """
    section, path, field = root, "", None
    names: dict[str, type[Section]] = {}
    for key in location:
        if field is not None and get_origin(value_type(field.annotation)) is dict:
            return Place(f"{path}.{key}", section, field)  # the user chooses the keys of a mapping
        if key in names:
            section, names = names[key], {}
        elif isinstance(key, int):
            path += f"[{key}]"
        else:
            inner = () if field is None else sections_in(field) or sections_in_list(field)
            if len(inner) == 1:
                section = inner[0]
            path = f"{path}.{key}" if path else str(key)
            field = section.model_fields.get(str(key))
            names = members(field) if field is not None else {}
    return Place(path, section, field)


def walk_values(root: type[Section], prefix: str = "") -> Iterator[Place]:
    """Find all settings that are values, in the order of the schema.

    Args:
        root: class of a section.
        prefix: dotted path of that section, including its last dot.

    Yields:
        The place of each value; the values of a section's several forms follow one another.
    """
    for key, field in root.model_fields.items():
        inner = sections_in(field)
        if not inner:
            yield Place(prefix + key, root, field)
        for section in inner:
            yield from walk_values(section, f"{prefix}{key}.")


def choice_paths(root: type[Section], prefix: tuple[str, ...] = ()) -> frozenset[tuple[str, ...]]:
    """Find the sections that have several forms.

    Args:
        root: class of a section.
        prefix: keys that lead to that section.

    Returns:
        Paths of the sections, each as a tuple of keys.
    """
    paths: set[tuple[str, ...]] = set()
    for key, field in root.model_fields.items():
        path = (*prefix, key)
        if members(field):
            paths.add(path)
        for section in sections_in(field):
            paths |= choice_paths(section, path)
    return frozenset(paths)

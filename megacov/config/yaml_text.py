"""YAML as people mean it: the plain part of YAML 1.2, in which `on` is a word, `3e-4` is a number, and keys are unique.

PyYAML reads YAML 1.1, in which `on`, `off`, `yes` and `no` are booleans, `3e-4` is text, `010` is eight and `1:30` is
ninety, and in which the second of two equal keys silently wins.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from megacov.errors import ConfigError

_BOOL, _INT, _FLOAT, _NULL, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null", "merge"))
_PLAIN_SCALARS = (
    (_BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (_INT, r"[-+]?[0-9]+", "-+0123456789"),
    (_FLOAT, r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    (_FLOAT, r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_MERGE, r"<<", "<"),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, first_characters in _PLAIN_SCALARS:
        for character in first_characters:
            table.setdefault(character, []).append((tag, re.compile(f"(?:{pattern})\\Z")))
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key: Any = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} occurs twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_constructor(_INT, lambda loader, node: int(node.value))


class _Dumper(yaml.SafeDumper):
    # The loader's table, so that exactly the texts that would be read as numbers or booleans are quoted.
    yaml_implicit_resolvers = _resolvers()


def parse_yaml(text: str, *, source: str) -> Any:
    """Read one YAML document.

    Args:
        text: the document.
        source: origin of the document, for the error.

    Returns:
        Dicts, lists, text, numbers, booleans and None.

    Raises:
        ConfigError: the text is not YAML, or a key occurs twice or is not text.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506, a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark is not None and "\n" in text.strip() else ""
        raise ConfigError(f"{source}{line}: {error.problem or error.context}; correct the YAML there.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {str(error).splitlines()[0]}; correct the YAML there.") from error


def dump_yaml(values: Any) -> str:
    """Write a YAML document that `parse_yaml` reads back equal.

    Args:
        values: dicts, lists, text, numbers, booleans and None.

    Returns:
        The document, keys in the order given.
    """
    # With allow_unicode, PyYAML would write Unicode's line breaks (U+0085) unescaped, and read them as spaces.
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=120)

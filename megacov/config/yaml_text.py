"""YAML as people mean it: the plain part of YAML 1.2, in which `on` is a word, `3e-4` is a number, and keys are unique.

PyYAML reads YAML 1.1, in which `on`, `off`, `yes` and `no` are booleans, `3e-4` is text, `010` is eight and `1:30` is
ninety, and in which the second of two equal keys silently wins.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from megacov.errors import ConfigError
from megacov.json_text import MAX_DEPTH

# PyYAML reads some 100 kB a second, and the largest configuration of a run has 10 kB.
MAX_YAML_BYTES = 256 * 2**10
MAX_ALIASES = 1000
MAX_NODES = 50_000
MAX_DIGITS = 40  # so that products of several settings are still within a float

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
    """Builds nothing but dicts, lists, text, numbers, booleans and None, and stops at the bounds."""

    yaml_implicit_resolvers = _resolvers()

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._num_aliases = 0
        # Nodes below the current one, those behind aliases counted anew each time.
        self._num_nodes = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            self._num_aliases += 1
            if node not in self._sizes:
                raise yaml.MarkedYAMLError(problem="an alias stands inside what it refers to", problem_mark=mark)
            if self._num_aliases > MAX_ALIASES:
                raise yaml.MarkedYAMLError(problem=f"there are more than {MAX_ALIASES} aliases", problem_mark=mark)
            self._num_nodes += self._sizes[node]
        else:
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise yaml.MarkedYAMLError(problem=f"it is nested more than {MAX_DEPTH} deep", problem_mark=mark)
            outside, self._num_nodes = self._num_nodes, 1
            node = super().compose_node(parent, index)
            assert node is not None
            self._sizes[node] = self._num_nodes
            self._num_nodes += outside
            self._depth -= 1
        if self._num_nodes > MAX_NODES:
            problem = f"it has more than {MAX_NODES} values, those behind aliases included"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key: Any = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"the key {_cut(repr(key))} is not text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            if key in seen:
                problem = f"the key {_cut(repr(key))} occurs twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def build_text(self, node: yaml.ScalarNode) -> str:
        """The text of a scalar, if it consists of characters."""
        text = str(self.construct_scalar(node))
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            problem = "there is half of a surrogate pair (such as \\ud800), which is no character"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return text

    def build_scalar(self, node: yaml.ScalarNode) -> Any:
        """A number, boolean or null, which a tag may also ask for where the text is none."""
        text = str(self.construct_scalar(node))
        if not any(tag == node.tag and re.fullmatch(pattern, text) for tag, pattern, _ in _PLAIN_SCALARS):
            problem = f"{_cut(repr(text))} is not what its tag {_cut(node.tag)} says"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if node.tag == _INT:
            if len(text.lstrip("+-")) > MAX_DIGITS:
                raise yaml.MarkedYAMLError(problem=f"a number has {len(text)} digits", problem_mark=node.start_mark)
            return int(text)
        if node.tag == _FLOAT:
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return None if node.tag == _NULL else text.lower() == "true"


_Loader.yaml_constructors = {
    **dict.fromkeys((_BOOL, _INT, _FLOAT, _NULL), _Loader.build_scalar),
    "tag:yaml.org,2002:str": _Loader.build_text,
    "tag:yaml.org,2002:seq": yaml.SafeLoader.construct_yaml_seq,
    "tag:yaml.org,2002:map": yaml.SafeLoader.construct_yaml_map,
    # No dates, sets or binary data, not even where a tag asks for them.
    None: yaml.SafeLoader.construct_undefined,
}


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


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
        ConfigError: the text is not YAML, a key occurs twice or is not text, or the document is beyond the bounds: its
            length, the depth of its nesting, its number of values with aliases expanded, the digits of a number.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ConfigError(f"{source} has more than {MAX_YAML_BYTES} characters: that is no configuration.")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506, a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark is not None and "\n" in text.strip() else ""
        problem = _cut_sentence(error.problem or error.context or "it is not YAML")
        raise ConfigError(f"{source}{line}: {problem}; correct the YAML there.") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets ValueError and OverflowError of int and chr through, as in "\UFFFFFFFF".
        problem = _cut_sentence(str(error).partition("\n")[0])
        raise ConfigError(f"{source}: {problem}; correct the YAML there.") from error


def read_yaml(path: Path, *, source: str) -> Any:
    """Read a file of one YAML document, as `parse_yaml` does. OSError and UnicodeDecodeError pass through."""
    with path.open("rb") as file:
        content = file.read(MAX_YAML_BYTES + 1)
    if len(content) > MAX_YAML_BYTES:
        raise ConfigError(f"{source} has more than {MAX_YAML_BYTES} bytes: that is no configuration.")
    return parse_yaml(content.decode("utf-8"), source=source)


def _cut_sentence(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def dump_yaml(values: Any) -> str:
    """Write a YAML document that `parse_yaml` reads back equal.

    Args:
        values: dicts, lists, text, numbers, booleans and None.

    Returns:
        The document, keys in the order given.
    """
    # With allow_unicode, PyYAML would write Unicode's line breaks (U+0085) unescaped, and read them as spaces.
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=120)

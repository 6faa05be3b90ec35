"""Valid files with a few mistakes each, as hypothesis draws them: random bytes would be refused at the first one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from hypothesis import strategies as st

from megacov.config.yaml_text import dump_yaml, parse_yaml

Kind = Literal["json", "lines", "yaml", "words"]
Tree = Any
Path = tuple[str | int, ...]

# Replaced after the tree is written, since no writer writes them.
_DEEP, _DIGITS, _FAR_TOO_LARGE = "@deep@", "@digits@", "@too large@"
_RAW = {
    f'"{_DEEP}"': "[" * 3000 + "]" * 3000,
    f'"{_DIGITS}"': "9" * 5000,
    f'"{_FAR_TOO_LARGE}"': "-1e999",
}
_VALUES: tuple[Tree, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    0.5,
    -0.0,
    1e-320,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    2**31,
    2**63,
    10**39,
    10**299,
    10**400,
    "",
    "a",
    "0",
    "1e3",
    "\0",
    "\ud800",
    "\u202e\u0085",
    "\U0001f600",
    "x" * 5000,
    "../../etc/passwd",
    "/",
    [],
    {},
    [[]],
    [1, "a", None],
    {"a": 1},
    {"": None},
    [0] * 500,
    _DEEP,
    _DIGITS,
    _FAR_TOO_LARGE,
)
_WORDS = (
    *("", "=", ":", "-", "0", "-1", "1", "9" * 30, "9" * 5000, "1K", "N/A", "(null)", "\u00b2", "\u0663", "\0"),
    *("nan", "1e999", "UNLIMITED", "1-00:00:00", "00:00", "x" * 5000, "[", "]", "<", ">", "&", "#", "'", '"', "\x1b"),
)
_BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\n",
    b"\r\n",
    b"{",
    b"}",
    b"[",
    b'"',
    b":",
    b",",
    b"\t",
    b"\xef\xbb\xbf",
)


def mutated(seeds: Sequence[bytes], kind: Kind) -> st.SearchStrategy[bytes]:
    """Files that differ from one of the seeds by one to four mistakes."""
    parts = [_parts_of(seed, kind) for seed in seeds]
    return _mutated(parts, kind)


def _parts_of(seed: bytes, kind: Kind) -> list[Tree]:
    """The trees of a file, one of each line if it has several; words have lists of lists."""
    text = seed.decode()
    if kind == "json":
        return [json.loads(text)]
    if kind == "yaml":
        return [parse_yaml(text, source="seed")]
    if kind == "lines":
        return [json.loads(line) for line in text.splitlines()]
    return [re.split(r"(\W)", line) for line in text.splitlines()]


@st.composite
def _mutated(draw: st.DrawFn, files: list[list[Tree]], kind: Kind) -> bytes:
    def number(below: int) -> int:
        return draw(st.integers(0, 2**16)) % below if below > 1 else 0

    def one_of(choices: Sequence[Any]) -> Any:
        return choices[number(len(choices))]

    trees = list(one_of(files))
    for _ in range(1 + number(3)):
        at = number(len(trees))
        if kind == "words":
            trees[at] = _with_odd_word(trees[at], number, one_of)
        else:
            trees[at] = _with_odd_value(trees[at], one_of(one_of(files)), number, one_of)
    if len(trees) > 1 and number(4) == 0:
        trees.insert(number(len(trees)), one_of([*trees, *one_of(files)]))
    content = "\n".join(_written(tree, kind, as_json=number(2) == 0) for tree in trees).encode("utf-8", "surrogatepass")
    return _with_odd_bytes(content, number, one_of) if number(4) == 0 else content


def _written(tree: Tree, kind: Kind, *, as_json: bool) -> str:
    if kind == "words":
        return "".join(tree)
    if kind == "yaml" and not as_json:
        try:
            text = dump_yaml(tree)
        except (UnicodeEncodeError, ValueError):
            text = json.dumps(tree)
        for raw in _RAW:
            text = text.replace(raw[1:-1], raw)
    else:
        text = json.dumps(tree)
    for mark, raw in _RAW.items():
        text = text.replace(mark, raw)
    return text


def _paths(tree: Tree, at: Path = ()) -> Iterator[Path]:
    yield at
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from _paths(value, (*at, key))


def _get(tree: Tree, path: Path) -> Tree:
    for key in path:
        tree = tree[key]
    return tree


def _replaced(tree: Tree, path: Path, change: Callable[[Tree], Tree]) -> Tree:
    """The tree with another value at the path. The tree itself is unchanged."""
    if not path:
        return change(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = _replaced(copy[path[0]], path[1:], change)
    return copy


def _with_odd_value(
    tree: Tree, other: Tree, number: Callable[[int], int], one_of: Callable[[Sequence[Any]], Any]
) -> Tree:
    paths = list(_paths(tree))
    path = one_of(paths)
    match number(8):
        case 0 | 1 | 2:
            return _replaced(tree, path, lambda _: one_of(_VALUES))
        case 3:
            return _replaced(tree, path[:-1], lambda parent: _without(parent, path[-1]) if path else None)
        case 4:
            depth = one_of((1, 3, 70, 300))
            return _replaced(tree, path, lambda value: _nested(value, depth))
        case 5:
            return _replaced(tree, path, lambda _: _get(tree, one_of(paths)))
        case 6:
            theirs = one_of(list(_paths(other)))
            return _replaced(tree, path, lambda _: _get(other, theirs))
    key = one_of(("", "a", "name", "type", "\0", "\ud800", "x" * 300, "<<"))
    return _replaced(tree, path, lambda value: value | {key: one_of(_VALUES)} if isinstance(value, dict) else [value])


def _without(parent: Tree, key: str | int) -> Tree:
    if isinstance(parent, dict):
        return {each: value for each, value in parent.items() if each != key}
    return [value for index, value in enumerate(parent) if index != key]


def _nested(value: Tree, depth: int) -> Tree:
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _with_odd_word(line: list[str], number: Callable[[int], int], one_of: Callable[[Sequence[Any]], Any]) -> list[str]:
    line = line or [""]
    at = number(len(line))
    match number(4):
        case 0:
            return [*line[:at], *line[at + 1 :]]
        case 1:
            return [*line[:at], one_of(line), *line[at:]]
        case 2:
            return line[:at]
    return [*line[:at], one_of(_WORDS), *line[at + 1 :]]


def _with_odd_bytes(content: bytes, number: Callable[[int], int], one_of: Callable[[Sequence[Any]], Any]) -> bytes:
    at = number(len(content) + 1)
    match number(6):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + one_of(_BYTES) + content[at + 1 :]
        case 2:
            return content[:at] + one_of(_BYTES) + content[at:]
        case 3:
            return content[:at] + content[max(0, at - 40) :]
        case 4:
            return content.decode("utf-8", "replace").encode(one_of(("utf-16", "utf-8-sig", "utf-32")))
    return content.replace(b"\n", b"\r\n")

"""YAML is read as people mean it, and is written so that it reads back equal."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megacov.config.yaml_text import MAX_ALIASES, MAX_NODES, MAX_YAML_BYTES, dump_yaml, parse_yaml, read_yaml
from megacov.errors import ConfigError
from megacov.json_text import MAX_DEPTH


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E6", 1e6),
        (".5", 0.5),
        ("-1.", -1.0),
        ("-.inf", -math.inf),
        ("12", 12),
        ("+12", 12),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'12'", "12"),
        ("127.0.0.1", "127.0.0.1"),
        ("http://127.0.0.1:3", "http://127.0.0.1:3"),
        ("package.module:function", "package.module:function"),
    ],
)
def test_a_scalar_is_what_it_looks_like(text, value):
    found = parse_yaml(text, source="test")
    assert found == value
    assert type(found) is type(value)


def test_anchors_and_merge_keys_work():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}"
    assert parse_yaml(text, source="test")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ["a: 1\na: 2", "b:\n  a: 1\n  a: 1", "[{a: 1, b: 2, a: 3}]", "{'a': 1, a: 2}"])
def test_a_key_that_is_there_twice_is_an_error(text):
    with pytest.raises(ConfigError, match="the key 'a' occurs twice"):
        parse_yaml(text, source="test")


def test_an_error_names_source_and_line():
    with pytest.raises(ConfigError, match=r"^run.yaml line 3: .*; correct the YAML there\.$"):
        parse_yaml("a: 1\nb: [2\nc: 3\n", source="run.yaml")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40) + 1, 10**40 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=10)
    | st.sampled_from(
        ["on", "no", "null", "1e5", "0x1", "010", "~", "<<", "=", "1:30", " x ", "#", "- a", "2024-01-01"]
    )
)


@example({"\x85": "\u2028 x", "a": "\x85"})
@given(
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_is_written_is_read_back_equal_and_of_the_same_type(value):
    found = parse_yaml(dump_yaml(value), source="test")
    assert found == value
    assert repr(found) == repr(value)


DOUBLING = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 3000 + "]" * 3000, f"nested more than {MAX_DEPTH} deep"),
        ("{a: " * 3000, f"nested more than {MAX_DEPTH} deep"),
        ("- " * 3000 + "1", f"nested more than {MAX_DEPTH} deep"),
        (DOUBLING, f"more than {MAX_NODES} values, those behind aliases included"),
        (DOUBLING.replace("[*", "{<<: [*").replace("]", "]}").replace("[1, 1]}", "{x: 1}"), f"more than {MAX_NODES}"),
        ("a: &a [1]\nb: [" + "*a, " * (MAX_ALIASES + 1) + "]", f"more than {MAX_ALIASES} aliases"),
        ("a: &a [*a]", "an alias stands inside what it refers to"),
        ("9" * 5000, "a number has 5000 digits"),
        ("%YAML " + "9" * 5000 + ".1\n--- a", "digits"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('"\\UFFFFFFFF"', "too large"),
        ("!!int abc", "'abc' is not what its tag"),
        ("!!bool 1", "'1' is not what its tag"),
        ("!!timestamp 2020-01-01", "could not determine a constructor"),
        ("!!python/object:os.system a", "could not determine a constructor"),
        ("a" * (MAX_YAML_BYTES + 1), f"more than {MAX_YAML_BYTES} characters"),
    ],
)
def test_what_is_out_of_bounds_is_one_short_sentence(text, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_yaml(text, source="test")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_what_is_within_bounds_is_read():
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, source="test")
    assert parse_yaml("a: &a [1]\nb: [" + "*a, " * MAX_ALIASES + "]", source="test")["b"] == [[1]] * MAX_ALIASES
    assert parse_yaml("!!str 5", source="test") == "5" and parse_yaml("!!float 5", source="test") == 5.0


def test_a_long_file_is_not_read_whole(tmp_path):
    path = tmp_path / "long.yaml"
    with path.open("wb") as file:
        file.truncate(2**33)  # a file of 8 GB without any content
    with pytest.raises(ConfigError, match=f"long.yaml has more than {MAX_YAML_BYTES} bytes"):
        read_yaml(path, source=str(path))

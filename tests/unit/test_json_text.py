"""JSON from outside is read within bounds."""

from __future__ import annotations

import math

import pytest

from megacov.json_text import MAX_DEPTH, MAX_DIGITS, JsonError, parse_json, read_json


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        ("[" * 3000 + "]" * 3000, f"nested more than {MAX_DEPTH} deep"),
        ("9" * (MAX_DIGITS + 1), f"a number of {MAX_DIGITS + 1} digits"),
        ("9" * 5000, "a number of 5000 digits"),
        ("1e999", "the number 1e999, which is too large"),
        ("NaN", "NaN where a number belongs"),
        ("[-Infinity]", "-Infinity where a number belongs"),
        ('{"a": ["\\ud800"]}', "half of a surrogate pair"),
        ('{"\\uDFFF": 1}', "half of a surrogate pair"),
        (b"\xed\xa0\x80", "not UTF-8 at byte 0"),
        ("{", "line 1 column 2"),
        ("", "line 1 column 1"),
    ],
)
def test_what_is_out_of_bounds_is_one_phrase(text, phrase):
    with pytest.raises(JsonError, match=phrase) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_what_is_within_bounds_is_read():
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse_json("9" * MAX_DIGITS) == 10**MAX_DIGITS - 1
    assert parse_json('"\\ud83d\\ude00 \\\\ud800"') == "\U0001f600 \\ud800"
    assert parse_json(b'\xef\xbb\xbf{"a": 0.5}') == {"a": 0.5}
    assert math.isnan(parse_json("NaN", allows_nan=True))


def test_a_long_file_is_not_read_whole(tmp_path):
    path = tmp_path / "long.json"
    with path.open("wb") as file:
        file.truncate(2**33)  # a file of 8 GB without any content
    with pytest.raises(JsonError, match="more than 100 bytes"):
        read_json(path, max_bytes=100)

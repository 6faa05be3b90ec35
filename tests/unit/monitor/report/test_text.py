"""Text for a page."""

from __future__ import annotations

import html
import json
import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacov.monitor.report.text import count, escape, number, show_hidden, to_script

ANY_TEXT = st.text(st.characters(categories=None))  # surrogates too

DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@given(ANY_TEXT)
def test_escaped_text_is_text_whatever_it_holds(text):
    escaped = escape(text)
    assert not set("<>\"'") & set(escaped)
    assert html.unescape(escaped) == show_hidden(text)
    escaped.encode()


@given(ANY_TEXT)
def test_nothing_controls_or_reorders_the_text_around_it(text):
    shown = [each for each in show_hidden(text) if each not in "\n\t"]
    assert not {unicodedata.category(each) for each in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(each) for each in shown} & DIRECTIONS


def test_what_is_hidden_is_spelled_out():
    assert show_hidden("a\u202eb\x1b[0m\nc\ud83d") == "a\\u202eb\\u001b[0m\nc\\ud83d"
    assert show_hidden("\U000e0041") == "\\U000e0041"


@given(st.recursive(st.none() | st.booleans() | st.integers() | ANY_TEXT, lambda each: st.lists(each, max_size=3)))
def test_data_is_read_back_and_cannot_end_its_element(value):
    written = to_script(value)
    assert json.loads(written) == value
    assert not set("<>&") & set(written)
    assert written.isascii()


def test_data_that_is_no_json_is_refused():
    with pytest.raises(ValueError):
        to_script([math.nan])


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_number_is_read_back_to_four_digits(value):
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=6e-4)


def test_numbers_for_people():
    assert [number(each) for each in (0.0, 3.0, 12345.0, 0.123456, -1e-7, math.nan, math.inf)] == [
        "0", "3", "12,345", "0.1235", "-1.000e-07", "none", "infinite",
    ]  # fmt: skip
    assert [count(0, "step"), count(1, "step"), count(2000, "step")] == ["0 steps", "1 step", "2,000 steps"]

"""Nothing that steers a terminal or hides from a reader passes; everything else does."""

from __future__ import annotations

import ast
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from megacov.monitor.visible_text import visible

ANY = st.text(st.characters(codec=None, exclude_categories=()))


@given(text=ANY)
def test_only_printable_characters_are_left_and_those_are_as_they_were(text):
    shown = visible(text)
    assert all(unicodedata.category(char)[0] != "C" and (char == " " or not char.isspace()) for char in shown)
    assert visible(shown) == shown
    kept = "".join(char for char in text if char.isprintable())
    assert visible(kept) == kept
    assert visible(text, ascii_only=True).isascii()


@given(text=ANY.map(lambda text: text.replace("\\", "").replace("'", "")))
def test_escapes_are_python_s(text):
    assert ast.literal_eval(f"'{visible(text, ascii_only=True)}'") == text


def test_what_steers_and_what_hides_is_spelt_out():
    assert visible("\x1b[31m\x9bH\x7f\u202e\u200d\ufeff\u2028\U000e0041") == (
        r"\x1b[31m\x9bH\x7f\u202e\u200d\ufeff\u2028\U000e0041"
    )
    assert visible("a\n\r\t\u4e2d") == "a\\n\\r\\t\u4e2d"

"""Bytes become the same keys wherever the reads cut them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from megacov.cli.viewer.keys import KeyDecoder

KEYS = {
    b"\x1b[A": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[1;5C": None,  # Ctrl and an arrow mean nothing here
    b"\x1b[200~": None,
    b"q": "q",
    "\u00e9".encode(): "\u00e9",
    "\U0001f600".encode(): "\U0001f600",
    b"\r": "enter",
    b"\x7f": "backspace",
    b"\x01": None,
    b"\x1bx": "escape",  # two keys
}


@given(presses=st.lists(st.sampled_from(list(KEYS))), cuts=st.sets(st.integers(1, 30)))
def test_keys_do_not_depend_on_the_reads(presses, cuts):
    data, decoder, keys = b"".join(presses), KeyDecoder(), []
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in itertools.pairwise(places):
        keys += decoder.feed(data[start:end])
    wanted = [name for press in presses for name in (["escape", "x"] if press == b"\x1bx" else [KEYS[press]]) if name]
    assert keys == wanted
    assert not decoder.is_in_sequence and decoder.flush() == []


def test_escape_alone_is_a_key_once_no_more_bytes_come():
    decoder = KeyDecoder()
    assert decoder.feed(b"\x1b") == [] and decoder.is_in_sequence
    assert decoder.flush() == ["escape"] and not decoder.is_in_sequence
    assert decoder.feed(b"\x1b[") == [] and decoder.flush() == []
    assert decoder.feed(b"\xff\xfeq")[-1] == "q"

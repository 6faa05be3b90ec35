"""Completions in pieces: joined they equal the completion of one request, and text keeps every bit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from megacov.rollout.sampling.carried import (
    NOT_BEGUN,
    CarriedGroup,
    dump_carried,
    is_too_old,
    join,
    load_carried,
    unchecked_token_dropped,
)
from megacov.types import Completion, FinishReason, Prompt, VersionSpan

END = 0


def decode(ids: Sequence[int]) -> str:
    """A token is a byte; the end of a sequence is a special token."""
    return bytes(token for token in ids if token != END).decode(errors="replace")


def piece(text: str | bytes, reason: FinishReason, *spans: tuple[str, int], shown: str | None = None) -> Completion:
    """Tokens of a text; spans are pairs of version and number of tokens."""
    ids = tuple(text.encode() if isinstance(text, str) else text)
    ends = [sum(length for _, length in spans[: i + 1]) for i in range(len(spans))]
    return Completion(
        token_ids=ids,
        log_probs=tuple(-token / 7 for token in ids),
        text=decode(ids) if shown is None else shown,
        finish_reason=reason,
        version_spans=tuple(
            VersionSpan(version, end - length, end) for (version, length), end in zip(spans, ends, strict=True)
        ),
    )


def joined(first: Completion, second: Completion, *stop: str) -> Completion:
    return join(first, second, decode=decode, stop=stop)


def test_tokens_log_probs_and_versions_follow_each_other():
    whole = joined(piece("abc", "abort", ("1", 2), ("2", 1)), piece("de", "length", ("2", 1), ("3", 1)))
    assert whole == piece("abcde", "length", ("1", 2), ("2", 2), ("3", 1))


def test_only_what_a_server_gave_up_loses_its_last_token():
    for reason in ("stop", "length"):
        assert unchecked_token_dropped(piece("ab", reason, ("1", 2)), decode=decode) == piece("ab", reason, ("1", 2))
    given_up = piece(bytes([97, 98, END]), "abort", ("1", 2), ("2", 1))
    assert unchecked_token_dropped(given_up, decode=decode) == piece("ab", "abort", ("1", 2))
    assert unchecked_token_dropped(piece("a", "abort", ("1", 1)), decode=decode) == NOT_BEGUN
    assert unchecked_token_dropped(NOT_BEGUN, decode=decode) is NOT_BEGUN


def test_three_pieces_are_one():
    first, second = piece("ab", "abort", ("1", 2)), piece("c", "abort", ("2", 1))
    whole = joined(joined(first, second), piece("d", "stop", ("4", 1), shown=""))
    assert whole == piece("abcd", "stop", ("1", 2), ("2", 1), ("4", 1), shown="abc")


def test_a_character_cut_in_two_is_whole_again():
    word = "n\u00e9".encode()
    assert joined(piece(word[:2], "abort", ("1", 2)), piece(word[2:], "length", ("2", 1))).text == "n\u00e9"


def test_what_ended_it_is_no_part_of_the_text():
    first = piece("ab", "abort", ("1", 2))
    assert joined(first, piece(bytes([99, END]), "stop", ("2", 2), shown="c")).text == "abc"
    assert joined(first, piece("c##", "stop", ("2", 3), shown="c"), "##").text == "abc"


@pytest.mark.parametrize("end", [END, 5, ord("#")], ids=["eos", "another eos", "a stop token with text"])
@pytest.mark.parametrize("split", [0, 1, 2])
def test_any_of_several_stop_tokens_ends_it_as_one_request_would(end: int, split: int):
    """The server's reason is "stop" for each of them, and its text ends before that token."""
    ids = bytes([97, 98, end])
    first = piece(ids[:split], "abort", ("1", split)) if split else NOT_BEGUN
    whole = joined(first, piece(ids[split:], "stop", ("1", 3 - split), shown="ab"[split:]), "zz")
    assert whole == piece(ids, "stop", ("1", 3), shown="ab")
    # The stop token itself was not checked where an abort came right after it: it is drawn again.
    assert unchecked_token_dropped(piece(ids, "abort", ("1", 3)), decode=decode) == piece("ab", "abort", ("1", 2))


@pytest.mark.parametrize("before", [1, 2])
def test_a_stop_text_on_both_sides_ends_it_where_one_server_would_have(before: int):
    text = "ab###cd"
    cut = 2 + before
    rest = piece(text[cut:], "length", ("2", len(text) - cut))
    whole = joined(piece(text[:cut], "abort", ("1", cut)), rest, "###", "zz")
    assert whole == piece("ab###", "stop", ("1", cut), ("2", 5 - cut), shown="ab")


def test_no_stop_text_is_seen_where_there_is_none():
    whole = joined(piece("ab#", "abort", ("1", 3)), piece("c##", "length", ("2", 3)), "##x")
    assert whole == piece("ab#c##", "length", ("1", 3), ("2", 3))


def test_nothing_joined_is_what_was_there():
    first, aborted = piece("ab", "abort", ("1", 2)), piece("", "abort", ("2", 0))
    assert joined(first, aborted) == first
    assert joined(NOT_BEGUN, aborted) == NOT_BEGUN
    assert joined(NOT_BEGUN, first) == first
    ended = piece(bytes([END]), "stop", ("2", 1), shown="")
    assert joined(first, ended) == piece(b"ab\0", "stop", ("1", 2), ("2", 1), shown="ab")


def test_the_oldest_token_decides():
    mixed = piece("abc", "abort", ("3", 1), ("5", 2))
    assert not is_too_old(mixed, oldest=3)
    assert is_too_old(mixed, oldest=4)
    assert not is_too_old(NOT_BEGUN, oldest=100)


def test_what_is_written_is_read_to_the_bit():
    groups = (
        CarriedGroup(Prompt(3, "n\u00e9\n", (1, 2), "5"), (piece("a\nb", "abort", ("1", 2), ("2", 1)), NOT_BEGUN)),
        CarriedGroup(Prompt(4, "", (7,), "", source=2, row={"level": [5, None]}), ()),
    )
    assert load_carried(dump_carried(groups)) == groups
    assert [group.prompt.row for group in load_carried(dump_carried(groups))] == [None, {"level": [5, None]}]
    assert load_carried("") == ()


def test_a_group_of_many_long_responses_is_read():
    """16 of 32,768 tokens are more than other JSON may have. Text stands for the tokens, which take longer to read."""
    completion = Completion(token_ids=(), log_probs=(), text="a" * 2**21, finish_reason="stop", version_spans=())
    group = CarriedGroup(Prompt(3, "", (1,), ""), (completion,) * 9)
    assert load_carried(dump_carried([group])) == (group,)

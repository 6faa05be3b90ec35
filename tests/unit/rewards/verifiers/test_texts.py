"""Verifiers of texts, choices and patterns."""

from __future__ import annotations

from typing import Any

import pytest

from megacov.errors import ConfigError, DataError
from megacov.rewards.loading import load_verifier
from megacov.rewards.settings import VerifierSettings

CASES: list[tuple[str, dict[str, Any], str, str, int]] = [
    ("exact", {}, " Paris\n", "Paris", 1),
    ("exact", {}, "paris", "Paris", 0),
    ("exact", {"strip": False}, "Paris\n", "Paris", 0),
    ("exact", {"after": "</think>"}, "Rome? No.</think>\nParis", "Paris", 1),
    ("exact", {"after": "</think>"}, "Paris", "Paris", 0),
    ("exact", {"after": "Answer:"}, "Answer: Rome. Answer: Paris", "Paris", 1),
    ("normalized_text", {}, "The  Eiffel-Tower!", "eiffeltower", 1),
    ("normalized_text", {}, "a theatre", "Theatre.", 1),
    ("normalized_text", {"ignore_case": False}, "paris", "Paris", 0),
    ("normalized_text", {"ignore_punctuation": False}, "Paris.", "Paris", 0),
    ("normalized_text", {"ignore_articles": False}, "the Seine", "Seine", 0),
    ("normalized_text", {}, "\uff30\uff41\uff52\uff49\uff53", "Paris", 1),
    ("normalized_text", {"after": "Answer:"}, "I think so. Answer: the Seine.", "Seine", 1),
    ("normalized_text", {}, "", "Paris", 0),
    ("multiple_choice", {}, r"So \boxed{B}", "B", 1),
    ("multiple_choice", {}, r"\boxed{\text{(b)}}", "B", 1),
    ("multiple_choice", {}, r"\boxed{B} and then (C)", "B", 1),
    ("multiple_choice", {}, r"\boxed{A, B}", "A", 0),
    ("multiple_choice", {}, r"\boxed{} B", "B", 0),
    ("multiple_choice", {}, r"\boxed{\textbf{(C)}\ 12}", "C", 1),
    ("multiple_choice", {}, r"\boxed{B: Paris}", "B", 1),
    ("multiple_choice", {}, r"\boxed{Go}", "G", 0),
    ("multiple_choice", {}, r"\boxed{a dog}", "A", 0),
    ("multiple_choice", {}, r"\boxed{A. or B.}", "A", 0),
    ("multiple_choice", {}, "Answer: 'B'", "B", 1),
    ("multiple_choice", {}, "<answer>B</answer>", "B", 1),
    ("multiple_choice", {}, "The answer is neither A nor B.", "A", 0),
    ("multiple_choice", {}, "The answer is (B).", "B", 1),
    ("multiple_choice", {}, "Answer: **C**", "C", 1),
    ("multiple_choice", {}, "the correct answer is option D, not E", "D", 1),
    ("multiple_choice", {}, "The answer is A because B is false.", "A", 1),
    ("multiple_choice", {}, "The answer is A. No, the answer is B.", "B", 1),
    ("multiple_choice", {}, "The answer is A or B.", "A", 0),
    ("multiple_choice", {}, "The answer is (A), (B)", "A", 0),
    ("multiple_choice", {}, "The answer is a matter of taste.\nB", "B", 1),
    ("multiple_choice", {}, "A says so, B too.\n\nC", "C", 1),
    ("multiple_choice", {}, "A man walks to B.", "B", 1),
    ("multiple_choice", {}, "I think that it is (c)", "C", 1),
    ("multiple_choice", {}, "A", "A", 1),
    ("multiple_choice", {}, "A and C", "A", 0),
    ("multiple_choice", {}, "B, and B again", "B", 1),
    ("multiple_choice", {}, "Because", "B", 0),
    ("multiple_choice", {}, "It's Bob's", "B", 0),
    ("multiple_choice", {}, "", "B", 0),
    ("multiple_choice", {}, "B", "1", 1),
    ("multiple_choice", {"first_index": 1}, "B", "2", 1),
    ("multiple_choice", {}, "B", "(b)", 1),
    ("multiple_choice", {"num_choices": 2}, "plan E: B", "B", 1),
    ("regex", {}, "The colour is grey.", "gr[ae]y", 1),
    ("regex", {}, "The colour is green.", "gr[ae]y", 0),
    ("regex", {"mode": "fullmatch"}, "The colour is grey.", "gr[ae]y", 0),
    ("regex", {"mode": "fullmatch"}, " grey\n", "gr[ae]y", 1),
    ("regex", {"ignore_case": True}, "GREY", "gr[ae]y", 1),
    ("regex", {"pattern": r"<answer>\s*{answer}\s*</answer>"}, "<answer> 1+1 </answer>", "1+1", 1),
    ("regex", {"pattern": r"<answer>\s*{answer}\s*</answer>"}, "<answer> 111 </answer>", "1+1", 0),
    ("regex", {"pattern": "<think>.+</think>"}, "<think>a\nb</think>", "", 1),
]


@pytest.mark.parametrize(("name", "arguments", "text", "answer", "reward"), CASES)
def test_verdicts(name: str, arguments: dict[str, Any], text: str, answer: str, reward: int) -> None:
    loaded = load_verifier(VerifierSettings(name, arguments))
    loaded.check_answer(answer)
    assert loaded.judges(text, answer, **arguments) == reward


@pytest.mark.parametrize(
    ("name", "arguments", "answer", "message"),
    [
        ("exact", {}, "\n", "got an empty one"),
        ("normalized_text", {}, "The!", "drops all of the answer 'The!'"),
        ("multiple_choice", {}, "K", "a letter from A to J, or a number from 0 to 9, .* got 'K'"),
        ("multiple_choice", {"num_choices": 4}, "E", "a letter from A to D, or a number from 0 to 3"),
        ("multiple_choice", {"first_index": 1}, "0", "a number from 1 to 10"),
        ("multiple_choice", {}, "AB", "got 'AB'"),
        ("regex", {}, "gr[ae", "needs a regular expression .* 'gr\\[ae'"),
        ("regex", {}, "x*", "accept an empty response with the answer 'x\\*'"),
        ("regex", {}, "", "accept an empty response"),
    ],
)
def test_answers_that_are_refused(name: str, arguments: dict[str, Any], answer: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_verifier(VerifierSettings(name, arguments)).check_answer(answer)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("exact", {"strip": "yes"}, "strip is 'yes'; set it to true or false"),
        ("exact", {"after": 1}, "after is 1; set it to a text"),
        ("normalized_text", {"ignore_case": 1}, "ignore_case is 1"),
        ("multiple_choice", {"num_choices": 11}, "num_choices is 11; set it to a whole number from 2 to 10"),
        ("multiple_choice", {"num_choices": 4.0}, "num_choices is 4.0; set it to a whole number from 2 to 10"),
        ("multiple_choice", {"first_index": 0.5}, "first_index is 0.5"),
        ("regex", {"mode": "match"}, "mode is 'match'; set it to search or fullmatch"),
        ("regex", {"pattern": "("}, "pattern is '\\(', which is no regular expression"),
        ("regex", {"pattern": 7}, "pattern is 7"),
        ("regex", {"ignore_case": "no"}, "ignore_case is 'no'"),
    ],
)
def test_arguments_that_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^rewards.arguments: {message}"):
        load_verifier(VerifierSettings(name, arguments))

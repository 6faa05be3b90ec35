"""The verifier of reasoning-gym's tasks: what is right, what is refused, and what never reaches a scorer."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from megacov.errors import ConfigError, DataError
from megacov.rewards.loading import load_verifier
from megacov.rewards.reasoning_gym.expressions import may_be_scored
from megacov.rewards.reasoning_gym.rows import decode, encode
from megacov.rewards.reasoning_gym.tasks import REFUSED, TESTED_VERSION, all_tasks, installed_version
from megacov.rewards.reasoning_gym.write import PromptFile, write_prompt_files
from megacov.rewards.registry import find_verifier
from megacov.rewards.settings import VerifierSettings

PALINDROME: dict[str, Any] = {
    "prompt": "Form a palindrome of: a, b, b, a",
    "answer": "abba",
    "task": "palindrome_generation",
    "settings": {"min_length": 4, "max_length": 4},
    "version": TESTED_VERSION,
    "metadata": {"letters": ["a", "b", "b", "a"]},
}


def judge(text: str, row: dict[str, Any] = PALINDROME, **arguments: Any) -> float:
    return find_verifier("reasoning_gym")(text, row["answer"], row=row, **arguments)


def test_the_installed_package_is_the_tested_one() -> None:
    assert installed_version() == TESTED_VERSION
    assert set(REFUSED) <= set(all_tasks())


def test_a_right_answer_other_than_the_row_s_own_is_right() -> None:
    assert judge("baab") == judge("  abba\n") == 1.0
    assert judge("abab") == judge("abbba") == judge("") == 0.0


def test_partial_credit_only_where_asked_for() -> None:
    assert judge("abcba", graded=True) == 0.05
    assert judge("baab", graded=True) == 1.0
    assert judge(" \n", graded=True) == 0.0


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("Let me see. <answer> baab </answer>", 1.0),
        ("<answer>abab</answer> no: <answer>baab</answer>.", 1.0),
        ("<answer>baab</answer> no: <answer>abab</answer>.", 0.0),
        ("baab", 0.0),
        ("<answer>baab", 0.0),
        ("baab</answer>", 0.0),
    ],
)
def test_the_last_pair_of_tags_holds_the_answer(text: str, reward: float) -> None:
    assert judge(text, tag="answer") == reward


@pytest.mark.parametrize("task", sorted(REFUSED))
def test_refused_tasks_are_refused_by_name(task: str, tmp_path: Path) -> None:
    message = f"The reasoning-gym task {task} is refused: {REFUSED[task]}."
    with pytest.raises(ConfigError) as caught:
        judge("abba", PALINDROME | {"task": task, "settings": {}})
    assert str(caught.value) == message
    with pytest.raises(ConfigError) as caught:
        write_prompt_files([PromptFile(task, 1, 0, tmp_path / "rows.jsonl")])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"version": "0.1.24"}, DataError, "written with reasoning-gym 0.1.24 and 0.1.25 is installed"),
        ({"metadata": {}}, DataError, "raises KeyError for 'abba', the right answer of a row"),
        ({"metadata": {"$what": []}}, DataError, "'metadata' of a row for the verifier reasoning_gym is damaged"),
        ({"task": None}, DataError, "needs the field 'task'"),
        ({"task": "palindrome"}, ConfigError, "did you mean palindrome_"),
        ({"settings": {"length": 3}}, ConfigError, "has no setting 'length'; it has max_length, min_length."),
        ({"settings": {"min_length": 20}}, ConfigError, "do not fit the task palindrome_generation"),
    ],
)
def test_a_defect_of_the_row_raises(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        judge("baab", PALINDROME | change)


def test_an_answer_that_the_scorer_fails_on_is_wrong_and_a_row_that_it_fails_on_raises() -> None:
    row = PALINDROME | {"task": "prime_factorization", "settings": {}, "metadata": {"number": 35, "factors": [5, 7]}}
    assert judge("zzz", row | {"answer": "5 \u00d7 7"}) == 0.0
    with pytest.raises(DataError, match="raises ValueError for 'five', the right answer of a row"):
        judge("zzz", row | {"answer": "five"})


def test_no_response_is_run(tmp_path: Path) -> None:
    calls = {
        "binary_matrix": "list({})",
        "n_queens": "str({!r})",
        "spiral_matrix": "list({})",
        "string_insertion": "str({!r})",
        "simple_integration": "expand({})",
        "countdown": "abs({})",
    }
    files = [PromptFile(task, 1, 0, tmp_path / f"{task}.jsonl") for task in calls]
    write_prompt_files(files)
    for file in files:
        row = json.loads(file.output.read_text(encoding="utf-8"))
        assert judge(row["answer"], row) == 1.0
        assert judge(calls[file.task].format(row["answer"]), row) == 0.0


@pytest.mark.parametrize(
    ("task", "answer", "is_scored"),
    [
        ("spiral_matrix", "[1, 2, -3]", True),
        ("spiral_matrix", "1 2 3", True),
        ("spiral_matrix", "[1 for x in y]", False),
        ("spiral_matrix", "[" * 300, True),  # Python's parser refuses it, as it does in eval
        ("n_queens", "_ Q _\nQ _ _", True),
        ("string_insertion", "ABCDE", True),
        ("string_insertion", "f'{len([])}'", False),
        ("countdown", "84*9 + (16 - 77)/2", True),
        ("countdown", "3**2", False),
        ("countdown", "abs(5)", False),
        ("simple_integration", "-2*(8 - 4*x)**(3/2)/3 + 2.5*sin(x) + C", True),
        ("simple_integration", "1e30", False),
        ("simple_integration", "x**100", False),
        ("simple_integration", "2**3**2", False),
        ("simple_integration", "((x + 1)**20)**20", False),
        ("simple_integration", "Integral(x**2, x)", False),  # a copy of the question
        ("simple_integration", "x.free_symbols", False),
        ("polynomial_multiplication", "-84912*x**5 + 3*y", True),
        ("complex_arithmetic", "8.0 + 3.0i", True),
        ("complex_arithmetic", "Na N", False),
        ("spell_backward", "nan", True),
    ],
)
def test_what_a_scorer_may_run(task: str, answer: str, is_scored: bool) -> None:
    assert may_be_scored(task, answer) is is_scored


def test_a_row_whose_own_text_would_be_run_is_refused() -> None:
    row = PALINDROME | {"task": "number_sorting", "settings": {}, "answer": "[abs(1)]", "metadata": {"direction": "up"}}
    with pytest.raises(DataError, match="which its scorer would run as Python"):
        judge("[1]", row)


@pytest.mark.parametrize(
    "value",
    [
        {"a": (1, [2.5, None, (True, "x")])},
        {1: "one", 2.5: ["two"], (3, 4): {}},
        {"$tuple": [1]},
        {"share": Fraction(-1, 3)},
    ],
)
def test_entries_pass_through_json_without_loss(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value
    assert repr(back) == repr(value)


def test_what_json_cannot_hold_is_no_row() -> None:
    with pytest.raises(TypeError, match="type object"):
        encode([object()])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"graded": "no"}, "rewards.arguments: graded is 'no'; set it to true or false"),
        ({"graded": 1}, "graded is 1"),
        ({"tag": 5}, "tag is 5; set it to the name of a tag, as in answer, or to null"),
        ({"tag": ""}, "tag is ''"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    load_verifier(VerifierSettings("reasoning_gym", {"graded": True, "tag": "answer"}))
    load_verifier(VerifierSettings("reasoning_gym", {"tag": None}))
    with pytest.raises(ConfigError, match=sentence):
        load_verifier(VerifierSettings("reasoning_gym", arguments))

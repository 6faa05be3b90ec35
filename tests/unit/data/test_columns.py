"""Fields by dotted names, chat messages as prompts, and gold answers in the forms of common data sets."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest

from megacov.data.answers import last_boxed, read_answer
from megacov.data.columns import Columns, find_field, is_missing
from megacov.data.rows import RowError

USER = {"role": "user", "content": "1="}
SYSTEM = {"role": "system", "content": "Add."}


def test_dots_lead_into_objects_unless_a_name_has_them() -> None:
    values = {"a": {"b": {"c": 1}, "b.c": 2}, "a.b": {"d": 3}, "x.y": 4, "x": {"y": 5}}
    found = {name: find_field(values, name) for name in ("a.b.d", "x.y", "a.b.c", "a.b")}
    assert found == {"a.b.d": 3, "x.y": 4, "a.b.c": 2, "a.b": {"d": 3}}
    assert all(is_missing(find_field(values, name)) for name in ("a.c", "a.b.c.d", "", ".", "a."))


def test_a_prompt_is_a_text_or_messages_with_what_stands_around_them() -> None:
    assert Columns().read({"prompt": "1=", "answer": 2}) == ([USER], "2")
    assert Columns().read({"prompt": [SYSTEM, {**USER, "name": None}], "answer": "2"})[0] == [SYSTEM, USER]
    around = Columns(system_prompt="Think.", instruction="{prompt}\nUse \\boxed{} and {x}.")
    asked = {"role": "user", "content": "1=\nUse \\boxed{} and {x}."}
    assert around.read({"prompt": "1=", "answer": ""})[0] == [{"role": "system", "content": "Think."}, asked]
    assert around.read({"prompt": [SYSTEM, USER], "answer": ""})[0] == [SYSTEM, asked]
    turns = [USER, {"role": "assistant", "content": "1"}, USER]
    assert around.read({"prompt": turns, "answer": ""})[0][1:] == [*turns[:2], asked]
    assert turns[2] == USER, "a row is not changed"


VERL: dict[str, Any] = {
    "data_source": "math_dapo",
    "prompt": [USER],
    "ability": "MATH",
    "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4"},
}


def test_the_layout_of_verl_is_read_as_it_is() -> None:
    assert Columns(answer_field="reward_model.ground_truth").read(VERL) == ([USER], "34")
    with pytest.raises(RowError) as error:
        Columns().read(VERL)
    names = "ability, data_source, extra_info.index, prompt, reward_model.ground_truth, reward_model.style"
    assert str(error.value).startswith(f" has no field 'answer' but {names}")
    assert str(error.value).endswith("; correct the row or data.answer_field.")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "is an empty list"),
        (["1="], "message 1 of the prompt in field 'prompt' is '1='"),
        ([USER, {"role": "user"}], "message 2 of the prompt"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a role and a content that are texts"),
        ([USER, {"role": "assistant", "content": "1"}], "ends with a message of the assistant"),
        ([{"role": "user", "content": " "}], "is empty"),
        ({"role": "user"}, "is a dict"),
        ([SYSTEM], "has no message of the user to instruct"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt: object, words: str) -> None:
    with pytest.raises(RowError, match=words):
        Columns(instruction="{prompt}!").read({"prompt": prompt, "answer": "1"})


@pytest.mark.parametrize(
    ("value", "form", "answer"),
    [
        (27.0, "plain", "27.0"),
        (12, "plain", "12"),
        (Decimal("1.50"), "plain", "1.50"),
        ("so 3+4\n#### 72", "gsm8k", "72"),
        ("#### 1 no\n####  -1,234,567.5 ", "gsm8k", "-1234567.5"),
        ("#### 1,2", "gsm8k", "1,2"),
        (r"first \boxed{1}, then $\boxed{\frac{1}{2}}$.", "boxed", r"\frac{1}{2}"),
        (r"\boxed{ \{1, 2\} }", "boxed", r"\{1, 2\}"),
        (r"\fbox{7}", "boxed", "7"),
        (r"so $x = \boxed 5$.", "boxed", "5"),
        (r"\boxed{3} and \boxed{never closed", "boxed", "3"),
        (r"\boxed{3} and \boxed{}", "boxed", "3"),
    ],
)
def test_answers_are_taken_out_of_their_field(value: object, form: str, answer: str) -> None:
    assert read_answer(value, field="answer", form=form) == answer


@pytest.mark.parametrize(
    ("value", "form", "words"),
    [
        (None, "plain", "is a NoneType"),
        (True, "plain", "is a bool"),
        (["1"], "plain", "is a list"),
        (Decimal("NaN"), "plain", "is nan, which is no answer"),
        ("72", "gsm8k", "nothing after ####; set data.answer_format=plain"),
        ("72 ####  ", "gsm8k", "nothing after ####"),
        (r"\boxed{", "boxed", r"has no \\boxed{}"),
        (r"\boxedtext{1}", "boxed", r"has no \\boxed{}"),
    ],
)
def test_an_answer_that_is_not_there_is_refused(value: object, form: str, words: str) -> None:
    with pytest.raises(RowError, match=f"'answer' .*{re.sub('[(]', '[(]', words)}"):
        read_answer(value, field="answer", form=form)


def test_a_box_is_found_in_long_text_in_little_time() -> None:
    assert last_boxed(r"\boxed{" * 100_000) is None

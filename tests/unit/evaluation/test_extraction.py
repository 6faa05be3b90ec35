"""Answers as maj@k counts them."""

from __future__ import annotations

import time

import pytest

from megacov.evaluation.extraction import extract_answer


@pytest.mark.parametrize(
    ("text", "how", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", "boxed", r"\frac{1}{2}"),
        (r"\boxed{3}, no: \boxed{ 4 }", "boxed", "4"),
        (r"\boxed{3} and then \boxed{4", "boxed", None),
        (r"\boxed{\text{x} = \boxed{5}}", "boxed", "5"),
        (r"\boxed{1,234}", "boxed", "1234"),
        (r"\boxed{1,2}", "boxed", "1,2"),
        (r"\boxed{$7$.}", "boxed", "7"),
        (r"\boxed{}", "boxed", None),
        ("}} 7", "boxed", None),
        ("no box", "boxed", None),
        ("#### 5\n#### 72\nbye", "gsm8k", "72"),
        ("####  $1,000,000", "gsm8k", "1000000"),
        ("####", "gsm8k", None),
        ("72", "gsm8k", None),
        (" 45+92\n", "text", "45+92"),
        ("  ", "text", None),
    ],
)
def test_answers(text, how, answer):
    assert extract_answer(text, how) == answer


def test_a_response_that_repeats_itself_takes_no_time():
    since = time.process_time()
    assert extract_answer("\\boxed{" * 50_000, "boxed") is None
    assert time.process_time() - since < 2.0

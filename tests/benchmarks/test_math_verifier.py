"""The responses of the benchmark of the verifier of mathematics: half are right, half are not, and always the same."""

from __future__ import annotations

import pytest

from benchmarks.math_verifier import CORRUPTIONS, RESPELLINGS, make_cases, without_memory
from megacov.rewards.verifiers.math import math

ROWS = [
    {"solution": f"We add, and get $\\boxed{{{answer}}}.$", "answer": answer}
    for answer in (r"\frac{1}{3}", "12", r"\left( 3, \frac{\pi}{2} \right)", "2, 5, 7", "x^2 + 3", "(1,5)", "7")
]


def test_half_of_the_responses_are_right() -> None:
    cases = make_cases(ROWS, responses=8)
    assert len(cases) == 8 * len(ROWS)
    for begin in range(0, len(cases), 8):
        verdicts = [math(case.text, case.answer) for case in cases[begin : begin + 8]]
        assert verdicts[:4] == [1.0] * 4, cases[begin : begin + 4]
        # A list in another order is still right.
        assert all(
            verdict == 0.0 or case.kind == "order"
            for verdict, case in zip(verdicts[4:], cases[begin + 4 : begin + 8], strict=True)
        )
    assert cases == make_cases(ROWS, responses=8)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_each_corruption_changes_an_answer(name: str) -> None:
    assert any(CORRUPTIONS[name](row["answer"]) != row["answer"] for row in ROWS)


def test_respelled_answers_are_those_of_their_kinds() -> None:
    kinds = {case.kind for case in make_cases(ROWS, responses=8)}
    assert kinds >= {"as it is", *RESPELLINGS}


def test_a_verdict_without_memory_is_the_same() -> None:
    cases = make_cases(ROWS, responses=8)
    assert [without_memory(case.text, case.answer) for case in cases] == [
        math(case.text, case.answer) for case in cases
    ]

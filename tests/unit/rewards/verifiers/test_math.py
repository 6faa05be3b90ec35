"""The verifier of mathematics: pairs with the verdict of a mathematician, what it refuses, and hostile answers."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from pathlib import Path

import pytest

from megacov.errors import ConfigError, DataError
from megacov.rewards.loading import load_verifier
from megacov.rewards.pool import VerifierPool
from megacov.rewards.settings import VerifierSettings
from megacov.rewards.verifiers.math import check_arguments, math
from megacov.rewards.verifiers.mathematics import expressions
from megacov.rewards.verifiers.mathematics.extraction import last_answers
from tests.support.verifier_pool import opened

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "math_pairs.jsonl").read_text("utf-8").splitlines()]
SPELLINGS = json.loads((Path(__file__).parent / "math_spellings.json").read_text("utf-8"))
PAGE = Path(__file__).parents[4] / "docs" / "mathematics.md"


def test_pairs_are_judged_as_a_mathematician_would() -> None:
    wrong = [pair for pair in PAIRS if math(pair["response"], pair["gold"]) != pair["verdict"]]
    assert len(PAIRS) >= 200
    assert len(wrong) <= 0.02 * len(PAIRS), wrong
    # No wrong answer is rewarded, and the page lists each right one that is not.
    assert [pair for pair in wrong if pair["verdict"] == 0] == []
    listed = PAGE.read_text("utf-8")
    answers = [re.sub(r"^.*?boxed\{(.*)\}.*$", r"\1", pair["response"], flags=re.DOTALL) for pair in wrong]
    assert [answer for answer in answers if f"`{answer}`" not in listed] == []


@pytest.mark.parametrize("gold", SPELLINGS)
def test_spellings_of_models(gold: str) -> None:
    cases = SPELLINGS[gold]
    assert [each for each in cases["right"] if math(f"\\boxed{{{each}}}", gold) != 1.0] == []
    assert [each for each in cases["wrong"] if math(f"\\boxed{{{each}}}", gold) != 0.0] == []


def test_pairs_are_of_both_verdicts_and_differ() -> None:
    assert len({(pair["gold"], pair["response"]) for pair in PAIRS}) == len(PAIRS)
    assert min(sum(pair["verdict"] == verdict for pair in PAIRS) for verdict in (0, 1)) >= 80


@pytest.mark.parametrize(
    "pair", [pair for pair in PAIRS if pair["kind"] == "hostile"], ids=lambda pair: pair["response"][:60]
)
def test_a_hostile_answer_is_judged_quickly(pair: dict) -> None:  # type: ignore[type-arg]
    math(r"\boxed{x+1}", "1+x")  # imports
    since = time.process_time()
    assert math(pair["response"], pair["gold"]) == pair["verdict"]
    assert time.process_time() - since < 1.0


PIECES = r"""
\frac { } ( ) ^ _ \sqrt 9 99999999 x \sin \cup \{ \} [ ] , = < \text{ \binom ! \pm % & \\ \log \int \max + - / 1 0
\begin{pmatrix} \end{pmatrix} \sum_{k=1}^{ \infty e i \boxed{ $ \left( \right) \cdot | \lfloor
^\circ \mod \Gamma \lim_{x\to0}
"""


def test_no_answer_raises_or_takes_long() -> None:
    choose = random.Random(0)
    for _ in range(400):
        many = choose.choice((1, 5, 400))
        answer = "".join(choose.choices(PIECES.split(), k=choose.randint(1, 20))) * many
        gold = choose.choice(PAIRS)["gold"]
        since = time.process_time()
        assert math(f"\\boxed{{{answer}}}", gold) in (0.0, 1.0)
        assert time.process_time() - since < 3.0, answer[:200]


def test_a_long_response_costs_little() -> None:
    since = time.process_time()
    assert math("\\boxed{" * 100_000, "5") == 0.0
    assert math("{" * 1_000_000 + "\\boxed{5}", "5") == 1.0
    assert math("$" * 1_000_000, "5", fallback="last_math") == 0.0
    assert time.process_time() - since < 2.0


def test_the_library_is_interrupted_where_its_bounds_let_something_through(monkeypatch: pytest.MonkeyPatch) -> None:
    gold, terms = "20z+210", [f"(z+{number})" for number in range(1, 21)]
    assert math(rf"\boxed{{{'+'.join(terms)}}}", gold) == 1.0
    monkeypatch.setattr(expressions, "_DEADLINE_S", 0.001)
    assert math(rf"\boxed{{{'+'.join(reversed(terms))}}}", gold) == 0.0  # not remembered, as the first one is


@pytest.mark.parametrize(
    ("text", "fallback", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", "none", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2", "none", "1"),
        (r"\boxed{a}, \boxed{b} and \boxed{a}", "none", "a, b"),
        (r"\boxed{(\fbox{1}, 2)}", "none", r"(\fbox{1}, 2)"),
        (r"\boxed 5.", "none", "5"),
        (r"\boxedness{5}", "none", None),
        ("Answer: 5", "none", None),
        ("Answer: 5", "answer_line", "5"),
        ("answer: 4\nFinal Answer: $5$\n", "answer_line", "$5$"),
        ("The answer: 5", "answer_line", None),
        ("$4$ and $5$", "answer_line", None),
        ("$4$ and $5$", "last_math", "5"),
        ("$4$\nAnswer: 6", "last_math", "6"),
        (r"$4$ and \boxed{5", "last_math", None),
        ("5", "last_math", None),
        ("", "last_math", None),
    ],
)
def test_the_answer_of_a_response(text: str, fallback: str, answer: str | None) -> None:
    assert ", ".join(last_answers(text, fallback=fallback) or ("nothing",)) == (answer or "nothing")


@pytest.mark.parametrize("answer", ["$\\frac{1}{2}$", "\\boxed{\\frac{1}{2}}", "We get $\\boxed{\\tfrac12}$.", " 0.5 "])
def test_a_right_answer_may_be_wrapped(answer: str) -> None:
    math.check_answer(answer)  # type: ignore[attr-defined]
    assert math(r"\boxed{1/2}", answer) == 1.0
    assert math(r"\boxed{1/3}", answer) == 0.0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "is empty"),
        ("$ $", "is empty"),
        ("\\boxed{}", "is empty"),
        ("\\frac{1", "neither mathematics that can be read nor words"),
        ("(1, \\foo{)", "neither mathematics that can be read nor words"),
        ("9^{9^{5}}", "neither mathematics that can be read nor words"),
        ("(" * 300 + ")" * 300, "neither mathematics that can be read nor words"),
    ],
)
def test_a_right_answer_that_nothing_can_match_is_refused(answer: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        math.check_answer(answer)  # type: ignore[attr-defined]


def test_tolerance_is_relative() -> None:
    assert math(r"\boxed{3.1416}", r"\pi") == 0.0
    assert math(r"\boxed{3.1416}", r"\pi", tolerance=1e-5) == 1.0
    assert math(r"\boxed{1001}", "1000", tolerance=1e-3) == 1.0
    assert math(r"\boxed{1002}", "1000", tolerance=1e-3) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fallback": "anywhere"}, "use one of none, answer_line"),
        ({"tolerance": -0.1}, "0 up to 1"),
        ({"tolerance": 1.0}, "0 up to 1"),
        ({"tolerance": "a"}, "0 up to 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError, match=message):
        load_verifier(VerifierSettings("math", arguments))


def test_arguments_in_range_pass() -> None:
    check_arguments(fallback="none", tolerance=0.0)


def test_verdicts_outside_of_the_main_thread_are_the_same() -> None:
    verdicts: list[float] = []
    pairs = [pair for pair in PAIRS if pair["kind"] == "expression"]
    thread = threading.Thread(target=lambda: verdicts.extend(math(each["response"], each["gold"]) for each in pairs))
    thread.start()
    thread.join(60)
    assert verdicts == [math(each["response"], each["gold"]) for each in pairs]


def test_right_answers_are_checked_in_the_pool(tmp_path: Path) -> None:
    answers = ["5", "\\frac{1", "\\text{east}", "", "$x^2$"]

    async def checked(pool: VerifierPool) -> list[tuple[int, str]] | str:
        try:
            return await pool.check_answers(answers)
        finally:
            await pool.aclose()

    with opened([VerifierSettings("math", {"fallback": "none"})], tmp_path) as pool:
        bad = asyncio.run(checked(pool))
    assert [place for place, _ in bad] == [1, 3]
    assert "neither mathematics" in bad[0][1] and "is empty" in bad[1][1]


@pytest.mark.parametrize(
    ("answer", "given", "reward"),
    [
        ("2^{2023}-1", "2^{2023}", 0.0),
        ("2^{2023}-1", "-1+2^{2023}", 1.0),
        (r"3^{200}+\sqrt{2}", r"3^{200}+\sqrt{3}", 0.0),
        (r"3^{200}+\sqrt{2}", r"\sqrt{2}+9^{100}", 1.0),
        ("y=2^{100}x", "y=(2^{100}+1)x", 0.0),
        ("2^{-300}", "2^{-301}", 0.0),
        ("y=2x+3", "2x-y+3=0", 1.0),
    ],
)
def test_the_last_digit_of_a_large_number_counts(answer: str, given: str, reward: float) -> None:
    assert math(rf"\boxed{{{given}}}", answer) == reward


@pytest.mark.parametrize(
    ("answer", "given", "reward"),
    [
        ("1000000", r"1 \text{ million}", 1.0),
        (r"2.5 \text{ million people}", r"2{,}500{,}000\text{ people}", 1.0),
        (r"5\text{ million}", r"5\text{ thousand}", 0.0),
        (r"\$5", r"\$5 \text{ million}", 0.0),
        (r"\$5{,}000{,}000", r"\$5 \text{ million}", 1.0),
        (r"5\text{ dollars}", r"5\text{ million dollars}", 0.0),
        (r"x\in(3,4)", "3<x<4", 1.0),
        (r"x\in(3,4]", "3<x<4", 0.0),
        (r"x\in(3,4)", "3<y<4", 0.0),
        (r"\varnothing", r"\text{no solution}", 1.0),
        ("0", r"\text{none}", 0.0),
    ],
)
def test_multiples_membership_and_the_empty_set(answer: str, given: str, reward: float) -> None:
    assert math(rf"\boxed{{{given}}}", answer) == reward

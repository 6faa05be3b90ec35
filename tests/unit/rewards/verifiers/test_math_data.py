"""The verifier of mathematics on the answers of MATH, MATH-500, GSM8K, AIME and AMC, through the pool of processes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megacov.rewards.pool import VerifierPool
from megacov.rewards.settings import VerifierSettings
from megacov.rewards.verifiers.math import math
from tests.support.verifier_pool import opened

DATA = Path(os.environ.get("MEGACOV_DATA", Path(__file__).parents[5] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is missing; MEGACOV_DATA names the folder")


def rows(file: str) -> list[dict[str, Any]]:
    text = (DATA / file).read_text("utf-8")
    return json.loads(text) if file.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def math500() -> list[tuple[str, str]]:
    """Solutions, whose boxes have the answers, and answers."""
    return [(row["solution"], row["answer"]) for row in rows("math500/test.jsonl")]


def gsm8k() -> list[tuple[str, str]]:
    parts = [row["answer"].split("####") for row in rows("gsm8k/test.jsonl")]
    return [(f"{solution}\\boxed{{{answer.strip()}}}", answer.strip()) for solution, answer in parts]


def verdicts(pool: VerifierPool, cases: Sequence[tuple[str, str]]) -> list[tuple[float, str | None]]:
    """Reward and failure of responses that are judged at the same time."""

    async def all_at_once() -> list[tuple[float, str | None]]:
        try:
            judged = await asyncio.gather(*(pool.judge({"text": text, "answer": answer}) for text, answer in cases))
        finally:
            await pool.aclose()
        return [(each.outcome.reward, each.outcome.failure) for each in judged]

    return asyncio.run(all_at_once())


CASES: dict[str, Callable[[], list[tuple[str, str]]]] = {"math500": math500, "gsm8k": gsm8k}


def judged(cases: Sequence[tuple[str, str]], folder: Path) -> tuple[int, int]:
    """How many are right with their own answer, and with that of the next problem whose answer is another one."""
    following = [
        next(other for _, other in [*cases[i + 1 :], *cases] if other != answer) for i, (_, answer) in enumerate(cases)
    ]
    with opened([VerifierSettings("math")], folder) as pool:
        right = verdicts(pool, cases)
    with opened([VerifierSettings("math")], folder) as pool:
        swapped = verdicts(pool, [(text, answer) for (text, _), answer in zip(cases, following, strict=True)])
    assert {failure for _, failure in [*right, *swapped]} == {None}
    return sum(reward == 1.0 for reward, _ in right), sum(reward == 1.0 for reward, _ in swapped)


@pytest.mark.parametrize("name", ["math500", "gsm8k"])
def test_every_answer_is_right_for_its_own_solution(name: str, tmp_path: Path) -> None:
    cases = CASES[name]()
    assert len(cases) == {"math500": 500, "gsm8k": 1319}[name]
    right, swapped = judged(cases, tmp_path)
    assert right == len(cases)
    assert swapped <= 2


def test_answers_of_competitions_are_readable_and_right() -> None:
    answers = [str(row["answer"]) for file in ("eval/aime24.jsonl", "eval/amc23.jsonl") for row in rows(file)]
    answers += [row["expected_answer"] for row in rows("eval/aime25.jsonl")]
    assert len(answers) == 100
    for answer in answers:
        math.check_answer(answer)  # type: ignore[attr-defined]
        whole = answer.removesuffix(".0").removesuffix("^\\circ")
        assert math(f"\\boxed{{{whole}}}", answer) == 1.0
        assert math(f"Answer: ${whole}$", answer) == 1.0
        assert math(f"\\boxed{{{whole}1}}", answer) == 0.0


@pytest.mark.slow
def test_every_answer_of_math_is_readable() -> None:
    answers = [row["answer"] for row in rows("math_train/math.json")]
    # Two rows of this copy have null as the answer, and two an empty text.
    assert [place for place, answer in enumerate(answers) if not answer] == [886, 1009, 5328, 5330]
    for answer in answers:
        if answer:
            math.check_answer(answer)  # type: ignore[attr-defined]
            assert math(f"\\boxed{{{answer}}}", f"${answer}$") == 1.0

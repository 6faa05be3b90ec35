"""Every verifier of megacov's own, in the processes that judge: the right answer scores 1, nothing and junk score 0."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from megacov.rewards.pool import VerifierPool
from megacov.rewards.registry import OWN
from megacov.rewards.settings import VerifierSettings
from tests.support.verifier_pool import opened

# A right response, its answer, and arguments.
RIGHT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "exact": ("Paris", "Paris", {}),
    "gsm8k": ("#### 18", "18", {}),
    "math": (r"so \boxed{\frac{1}{2}}", "0.5", {}),
    "multiple_choice": ("The answer is (B).", "B", {}),
    "normalized_text": ("the Seine.", "Seine", {}),
    "numeric": (r"\boxed{0.5}", "1/2", {}),
    "regex": ("grey", "gr[ae]y", {}),
    "sum_pairs": ("8+9", "17", {}),
    "weighted": ("18", "18", {"parts": [{"verifier": "gsm8k", "weight": 1.0}]}),
}
ELSEWHERE = {
    "code": "tests of code run in namespaces that not every machine has",
    "judge": "a judge needs a server",
    "reasoning_gym": "every task has a test of its own",
}
JUNK = ("", " \n", "\x00\ud800", "?" * 10_000, r"\boxed{\boxed{", "no idea", "{" * 2000, "#### ", "\u0661\u0662")


def test_every_verifier_has_a_case() -> None:
    assert RIGHT.keys() | ELSEWHERE.keys() == OWN.keys()


@pytest.mark.parametrize("surrounded", ["{}", "\n {} \n"])
def test_right_nothing_and_junk(surrounded: str, tmp_path: Path) -> None:
    names = sorted(RIGHT)

    async def run(pool: VerifierPool) -> list[list[float]]:
        async def judged(place: int, text: str) -> float:
            values = {"text": text, "answer": RIGHT[names[place]][1]}
            outcome = (await pool.judge(values, verifier=place)).outcome
            assert outcome.failure is None, (names[place], text[:20], outcome)
            return outcome.reward

        async def judged_all(place: int) -> list[float]:
            right = surrounded.format(RIGHT[names[place]][0])
            texts = [right if names[place] != "sum_pairs" else right.strip(), *JUNK]
            return await asyncio.gather(*(judged(place, text) for text in texts))

        try:
            assert [await pool.check_answers([RIGHT[name][1]], verifier=place) for place, name in enumerate(names)] == [
                [] for _ in names
            ]
            return await asyncio.gather(*map(judged_all, range(len(names))))
        finally:
            await pool.aclose()

    verifiers = [VerifierSettings(name, RIGHT[name][2]) for name in names]
    with opened(verifiers, tmp_path) as pool:
        assert dict(zip(names, asyncio.run(run(pool)), strict=True)) == {
            name: [1.0] + [0.0] * len(JUNK) for name in names
        }

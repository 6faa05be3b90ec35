"""All of GSM8K's test set, through the processes that judge: every solution is right for its own problem."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from megacov.rewards.answers import AnswerCheck
from megacov.rewards.pool import VerifierPool
from megacov.rewards.settings import VerifierSettings
from megacov.types import Prompt
from tests.support.verifier_pool import opened

ROOT = Path(__file__).parents[4]
DATA = Path(os.environ.get("MEGACOV_DATA", ROOT.parent / "shared" / "data")) / "gsm8k" / "test.jsonl"


@pytest.mark.skipif(not DATA.is_file(), reason="GSM8K is not in MEGACOV_DATA")
@pytest.mark.parametrize("method", ["strict", "flexible"])
def test_every_solution_is_right_for_its_own_problem(method: str, tmp_path: Path) -> None:
    solutions = [json.loads(line)["answer"] for line in DATA.read_text(encoding="utf-8").splitlines()]
    golds = [solution.rpartition("####")[2].strip() for solution in solutions]
    assert len(golds) == 1319
    verifiers = [VerifierSettings("gsm8k", {"method": method})]

    async def run(pool: VerifierPool) -> list[list[float]]:
        async def reward(text: str, answer: str) -> float:
            outcome = (await pool.judge({"text": text, "answer": answer})).outcome
            assert outcome.failure is None, outcome.reason
            return outcome.reward

        try:
            checking = AnswerCheck(pool, verifiers, pool.wait_for_first(), [0], num_workers=1, timeout_s=60.0)
            await checking.check([Prompt(n, "", (1,), gold) for n, gold in enumerate(golds)], str)
            own = await asyncio.gather(*map(reward, solutions, golds))
            others = await asyncio.gather(*map(reward, solutions, [*golds[1:], golds[0]]))
            return [own, others]
        finally:
            await pool.aclose()

    with opened(verifiers, tmp_path) as pool:
        own, others = asyncio.run(run(pool))
    assert sum(own) == 1319
    same = sum(first == second for first, second in zip(golds, [*golds[1:], golds[0]], strict=True))
    assert sum(others) == same < 60

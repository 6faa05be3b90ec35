"""Verdicts of a suite by real processes: a verifier for each set, failures, and answers that cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from megacov.config.suite import EvaluationSet, SuiteSection
from megacov.errors import ConfigError, DataError
from megacov.evaluation.verdicts import Verifiers
from megacov.types import Completion, Prompt, Verdict

BAD = "tests.support.verifiers:not_a_number"


def _set(name: str, verifier: str, **settings: object) -> EvaluationSet:
    return EvaluationSet(name=name, path="x", verifier=verifier, **settings)  # type: ignore[arg-type]


EXACT = _set("exact", "numeric")
NEAR = _set("near", "numeric", verifier_arguments={"absolute": 0.5})
LIKE_EXACT = _set("like_exact", "numeric", unreadable_answers="keep")
FAILS = _set("fails", BAD)
ALL = (EXACT, NEAR, LIKE_EXACT, FAILS)


def _prompt(answer: str, index: int = 0) -> Prompt:
    return Prompt(index=index, text="?", token_ids=(1,), answer=answer)


def _response(text: str) -> Completion:
    return Completion((1,), (0.0,), text, "stop", ())


def _with_verifiers(folder: Path, work: Callable[[Verifiers], Awaitable[object]]) -> object:
    suite = SuiteSection(name="suite", sets=ALL, workers=1)
    with Verifiers(suite, ALL, log_path=folder / "verifier.log") as verifiers:

        async def run() -> object:
            try:
                return await work(verifiers)
            finally:
                await verifiers.aclose()

        return asyncio.run(run())


def test_each_set_has_its_verifier_with_its_arguments(tmp_path, capsys):
    async def work(verifiers: Verifiers) -> list[Verdict]:
        response = _response("\\boxed{3.4}")
        return [await verifiers.judge_of(each)(_prompt("3"), response) for each in (*ALL, FAILS)]

    verdicts = _with_verifiers(tmp_path, work)
    assert verdicts == [Verdict(0.0), Verdict(1.0), Verdict(0.0), *[Verdict(0.0, "not_finite")] * 2]
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    (warning,) = warnings  # the first failure of a kind alone
    assert warning.startswith(f"megacov: warning: fails: the verifier {BAD} returned nan")


def test_answers_that_cannot_be_read(tmp_path, capsys):
    async def work(verifiers: Verifiers) -> int:
        problems = [_prompt(answer, index) for index, answer in enumerate(("1", "seven", "2", "eight"))]
        assert await verifiers.check_answers(EXACT, problems[:1], str) == 0
        with pytest.raises(DataError, match=r"^the set exact: line 1 \(and 1 more\): .*or verifier numeric"):
            await verifiers.check_answers(EXACT, problems, lambda index: f"line {index}")
        return await verifiers.check_answers(LIKE_EXACT, problems, str)

    assert _with_verifiers(tmp_path, work) == 2
    assert "like_exact: the verifier cannot read 2 answers, whose problems stay" in capsys.readouterr().out


def test_a_verifier_that_is_not_there(tmp_path):
    broken = (EXACT, _set("a", "tests.support.verifiers:none"))
    suite = SuiteSection(name="suite", sets=broken, workers=1)
    with (
        pytest.raises(ConfigError, match="the set a: verifier: .*none"),
        Verifiers(suite, broken, log_path=tmp_path / "log"),
    ):
        pass

"""Answers of the data that a verifier cannot judge against are found in the processes that judge."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from megacov.errors import DataError
from megacov.rewards.answers import AnswerCheck
from megacov.rewards.pool import VerifierPool
from megacov.rewards.reasoning_gym.tasks import TESTED_VERSION
from megacov.rewards.settings import VerifierSettings
from megacov.types import Prompt
from tests.support.verifier_pool import opened

CHECKS = "tests.support.answer_checks"


def prompts_of(answers: list[str], *, source: int = 0, first: int = 0) -> list[Prompt]:
    return [Prompt(first + place, "?", (1,), answer, source) for place, answer in enumerate(answers)]


def check(
    folder: Path, prompts: list[Prompt], *verifiers: VerifierSettings, timeout_s: float = 60.0, call_s: float = 30.0
) -> None:
    async def run(pool: VerifierPool) -> None:
        checking = AnswerCheck(
            pool, verifiers, pool.wait_for_first(), range(len(verifiers)), num_workers=2, timeout_s=timeout_s
        )
        try:
            await checking.check(prompts, "prompts.jsonl, line {}".format)
        finally:
            await pool.aclose()

    with opened(verifiers, folder, num_workers=2, timeout_s=call_s, is_quiet=True) as pool:
        asyncio.run(run(pool))
    assert not (folder / "verifier.log").exists()  # the run folder may be an earlier run's


def test_the_first_of_several_bad_answers_is_named(tmp_path: Path) -> None:
    first = prompts_of(["17", "x", *["3"] * 200, "y"])
    second = prompts_of(["anything", "unwanted"], source=1, first=len(first))
    third = prompts_of(["anything"], source=2, first=len(first) + 2)
    verifiers = (
        VerifierSettings("sum_pairs"),
        VerifierSettings(f"{CHECKS}:judge", {"unwanted": "unwanted"}, setting="data.sources.1.verifier"),
        VerifierSettings("tests.support.verifiers:one"),
    )
    words = (
        r"^prompts.jsonl, line 1 \(and 2 more\): sum_pairs needs a target in decimal digits as the answer of a prompt, "
        r"got 'x'; correct the answer, or rewards.verifier sum_pairs\.$"
    )
    with pytest.raises(DataError, match=words):
        check(tmp_path, first + second + third, *verifiers)


def test_the_row_is_looked_at_where_the_verifier_judges_by_it(tmp_path: Path) -> None:
    tests = {"inputs": ["1"], "outputs": ["2"]}
    palindrome = {
        "prompt": "Form a palindrome of: a, b, b, a",
        "task": "palindrome_generation",
        "settings": {"min_length": 4, "max_length": 4},
        "version": TESTED_VERSION,
        "metadata": {"letters": ["a", "b", "b", "a"]},
    }
    code = VerifierSettings("code", {"tests_field": "tests"})
    parts = [{"verifier": "code", "weight": 1.0, "arguments": {"tests_field": "tests"}}]
    gym = VerifierSettings("reasoning_gym")
    for verifier, good, bad, answer, words in (
        (code, {"tests": tests}, {"test": tests}, "", "The tests must be"),
        (VerifierSettings("weighted", {"parts": parts}), {"tests": tests}, {"tests": "{"}, "", "The tests"),
        (gym, palindrome, palindrome | {"metadata": {"letters": ["a", "b"]}}, "abba", "gives 0.05 in place of 1"),
        (gym, palindrome, palindrome | {"task": 3}, "abba", "needs the field 'task'"),
    ):
        prompts = [Prompt(place, "?", (1,), answer, row=row) for place, row in enumerate([good, bad])]
        with pytest.raises(DataError, match=f"^prompts.jsonl, line 1: .*{words}"):  # and not line 0
            check(tmp_path, prompts, verifier)


def test_answers_on_which_the_check_hangs_raises_or_dies_are_found(tmp_path: Path) -> None:
    for answer, words in (
        ("hangs", "line 40: the verifier .* did not return within rewards.timeout_s = 1 s when it looked"),
        ("dies", r"line 40: the verifier .* ended its process \(exit code 3\) when it looked at the answer; correct"),
        ("raises", "line 40: its check_answer raised KeyError: 'a'; correct"),
    ):
        prompts = prompts_of([*["fine"] * 40, answer, "fine"])
        with pytest.raises(DataError, match=words):
            check(tmp_path, prompts, VerifierSettings(f"{CHECKS}:judge"), call_s=1.0)


def test_a_check_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    words = r"have looked at [0-9]+ answers of the data within rewards.start_timeout_s = 1 s, and not yet at all"
    with pytest.raises(DataError, match=words):
        check(tmp_path, prompts_of(["slow"] * 1000), VerifierSettings(f"{CHECKS}:judge"), timeout_s=1.0)


def test_many_answers_are_checked_in_few_messages(tmp_path: Path) -> None:
    prompts = prompts_of([*["17"] * 99_999, "seventeen"])
    with pytest.raises(DataError, match="line 99999: sum_pairs needs a target in decimal digits"):
        check(tmp_path, prompts, VerifierSettings("sum_pairs"), timeout_s=20.0)

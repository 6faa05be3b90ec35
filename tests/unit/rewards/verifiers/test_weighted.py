"""A verifier made of others passes on what they ask for, and fails if one of them does."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from megacov.errors import ConfigError, DataError
from megacov.rewards.call import Caller, Outcome
from megacov.rewards.loading import load_verifier
from megacov.rewards.settings import VerifierSettings
from megacov.rewards.verifiers.weighted import weighted

HERE = __name__
VALUES: dict[str, Any] = {"text": "so 4\n#### 18", "answer": "18", "num_tokens": 10, "row": {"bonus": 0.25}}


def from_row(text: str, row: dict[str, Any], answer: str) -> float:
    assert answer == "18"
    return float(row["bonus"])


async def later(text: str, *, num_tokens: int, share: float) -> float:
    await asyncio.sleep(0)
    return share * num_tokens


def refuses(text: str, answer: str) -> Any:
    return {"none": None, "nan": float("nan"), "text": "1.0"}[text]


def part(verifier: str, weight: float, **arguments: Any) -> dict[str, Any]:
    return {"verifier": verifier, "weight": weight, **({"arguments": arguments} if arguments else {})}


def outcome(values: dict[str, Any], *parts: dict[str, Any]) -> Outcome:
    ready = load_verifier(VerifierSettings("weighted", {"parts": list(parts)})).prepared()
    return Caller(ready.judges, ready.wanted, ready.arguments).call(values)


def test_the_sum_of_what_the_parts_give() -> None:
    parts = [
        part("gsm8k", 0.5, method="strict"),
        part("gsm8k", 0.25),
        part(f"{HERE}:from_row", 2.0),
        part(f"{HERE}:later", -0.1, share=0.5),
        part("weighted", 3.0, parts=[part("gsm8k", 1.0)]),
    ]
    assert outcome(VALUES, *parts) == Outcome(0.5 + 0.25 + 2 * 0.25 - 0.1 * 5 + 3.0)
    ready = load_verifier(VerifierSettings("weighted", {"parts": parts})).prepared()
    assert ready.wanted.names == ("text", "answer", "row", "num_tokens")
    only = load_verifier(VerifierSettings("weighted", {"parts": parts[:2]})).prepared()
    assert only.wanted.names == ("text", "answer")
    assert asyncio.run(weighted("#### 18", "18", parts=parts[:2])) == 0.75


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("other", "its part .*:refuses raised KeyError"),
        ("none", "its part .*:refuses returned None, which is not a number"),
        ("nan", "its part .*:refuses returned nan .a reward must be"),
        ("text", "its part .*:refuses returned '1.0', which"),
    ],
)
def test_a_part_that_fails_fails_the_verdict(text: str, reason: str) -> None:
    got = outcome(VALUES | {"text": text}, part("gsm8k", 1.0), part(f"{HERE}:refuses", 1.0))
    assert (got.reward, got.failure) == (0.0, "raised")
    assert re.search(reason, got.reason)


def test_answers_are_those_that_all_parts_can_judge_against() -> None:
    loaded = load_verifier(VerifierSettings("weighted", {"parts": [part("exact", 1.0), part("gsm8k", 1.0)]}))
    loaded.check_answer("18")
    with pytest.raises(DataError, match="gsm8k needs a number"):
        loaded.check_answer("eighteen")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "parts must be a list of"),
        ({"verifier": "exact"}, "parts must be a list of"),
        (["exact"], "parts.0 is 'exact'; give it verifier and weight"),
        ([{"verifier": "exact"}], "parts.0 is .*; give it verifier and weight"),
        ([part("exact", 1.0) | {"wieght": 1}], "parts.0 is .*; give it verifier and weight"),
        ([{"verifier": "exact", "weight": "1"}], "parts.0.weight is '1'; set it to a number"),
        ([{"verifier": "exact", "weight": float("nan")}], "parts.0.weight is nan"),
        ([{"verifier": 1, "weight": 1}], "parts.0: verifier must be a name"),
        ([part("exact", 1.0), part("exat", 1.0)], "parts.1.verifier: there is no verifier 'exat'"),
        ([part("gsm8k", 1.0, metod="strict")], "parts.0.arguments sets metod, and gsm8k takes method"),
        ([part("gsm8k", 1.0, method="loose")], "parts.0.arguments: method is 'loose'"),
    ],
)
def test_parts_that_are_refused(parts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^rewards.arguments: {message}"):
        load_verifier(VerifierSettings("weighted", {"parts": parts}))


def test_a_users_part_is_imported_with_the_verifiers_process() -> None:
    loaded = load_verifier(VerifierSettings("weighted", {"parts": [part("not_a_module:judge", 1.0)]}))
    with pytest.raises(ConfigError, match="^rewards.arguments: parts.0.verifier: cannot import 'not_a_module'"):
        loaded.prepared()

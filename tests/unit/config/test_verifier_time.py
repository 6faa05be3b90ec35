"""Verifiers that bound their own time must end before their verdict is due, in training and in evaluations."""

from __future__ import annotations

from typing import Any

import pytest

from megacov.config import make_config
from megacov.config.suite import SuiteSection
from megacov.config.verifier_time import find_uses, too_slow
from megacov.errors import ConfigError
from tests.support.config_values import values

JUDGE = {"urls": ["http://10.0.0.1:1/v1"], "model": "m"}


def _weighted(*parts: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    given = [{"verifier": name, "weight": 1, "arguments": arguments} for name, arguments in parts]
    return {"verifier": "weighted", "allow_code": True, "arguments": {"parts": given}}


@pytest.mark.parametrize(
    ("rewards", "sentence"),
    [
        (
            {"verifier": "judge", "arguments": {**JUDGE, "total_s": 30}},
            "rewards.verifier is judge, which may take total_s = 30 s, and rewards.timeout_s is 30: raise "
            "rewards.timeout_s, or lower the argument total_s",
        ),
        ({"verifier": "judge", "arguments": JUDGE, "timeout_s": 28.0}, "total_s = 28 s, and rewards.timeout_s is 28"),
        (_weighted(("sum_pairs", {}), ("judge", {"total_s": 45.5})), "a part of rewards.verifier is judge.* = 45.5 s"),
        (
            _weighted(("code", {}), ("judge", {})),
            "a part of rewards.verifier is code and then a part of rewards.verifier is judge, which may take "
            r"total_s = 25 \+ 28 s, and rewards.timeout_s is 30",
        ),
    ],
)
def test_a_verdict_that_may_come_too_late_is_refused(rewards: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_config(values(rewards=rewards))


@pytest.mark.parametrize(
    "rewards",
    [
        {"verifier": "judge", "arguments": JUDGE},
        {"verifier": "judge", "arguments": {**JUDGE, "total_s": 29.9}},
        _weighted(("code", {"total_s": 14.0}), ("judge", {"total_s": 15.9})),
        {"verifier": "my_package.verifiers:judge", "arguments": {"total_s": 99.0}},
        {"verifier": "judge", "arguments": {**JUDGE, "total_s": "soon"}},  # the verifier itself refuses it
    ],
)
def test_one_that_comes_in_time_is_not(rewards: dict[str, Any]) -> None:
    make_config(values(rewards=rewards))


def test_a_source_with_a_judge_of_its_own_is_looked_at() -> None:
    source = {"name": "a", "path": "a.jsonl", "verifier": "judge", "verifier_arguments": {**JUDGE, "total_s": 31.0}}
    with pytest.raises(ConfigError, match=r"data.sources.0.verifier is judge, which may take total_s = 31 s"):
        make_config(values(data={"path": None, "sources": [source]}, rewards={"verifier": "sum_pairs"}))


def test_a_suite_is_held_to_its_own_deadline() -> None:
    one = {"name": "essays", "path": "essays.jsonl", "verifier": "judge", "verifier_arguments": JUDGE}
    SuiteSection.model_validate({"name": "s", "sets": [one], "timeout_s": 28.5})
    with pytest.raises(
        ValueError, match="the verifier of the set essays is judge, .* timeout_s is 28: raise timeout_s"
    ):
        SuiteSection.model_validate({"name": "s", "sets": [one], "timeout_s": 28.0})


def test_a_verifier_is_found_by_its_place_too_and_junk_is_none() -> None:
    (use,) = find_uses("x", "megacov.rewards.verifiers.judge:judge", {"total_s": 3})
    assert (use.place, use.name, use.total_s) == ("x", "judge", 3.0)
    for arguments in (None, 5, {"parts": 5}, {"parts": [5, {"verifier": ["code"]}]}):
        assert list(find_uses("x", "weighted", arguments)) == []
    assert too_slow("x", "judge", {"total_s": -1}, timeout_s=1.0, setting="s") is None

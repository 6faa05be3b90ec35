"""Verifiers are found by name or import path, and their results are checked."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from megacov.errors import ConfigError, RewardError
from megacov.rewards import get_verifier

MODULE = """
BEST = 1.0

def half(text, answer):
    return 0.5

def whole(text, answer):
    return text == answer

def broken(text, answer):
    return {value}
"""


def write_module(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, *, value: str = "1.0") -> None:
    (folder / f"{name}.py").write_text(MODULE.format(value=value), encoding="ascii")
    monkeypatch.syspath_prepend(str(folder))


def test_own_verifier_by_name() -> None:
    verify = get_verifier("sum_pairs")
    assert verify("45+92", "137") == 1.0
    assert verify("45+93", "137") == 0.0


def test_imported_verifier_returns_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, "verifiers_of_a_user", monkeypatch)
    assert get_verifier("verifiers_of_a_user:half")("a", "b") == 0.5
    reward = get_verifier("verifiers_of_a_user:whole")("a", "a")
    assert reward == 1.0
    assert isinstance(reward, float)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sum_pair", r"no verifier 'sum_pair'; use one of sum_pairs"),
        ("", r"no verifier ''"),
        (":function", "package.module:function"),
        ("module:", "package.module:function"),
        ("module:a:b", "package.module:function"),
        (".relative:function", "package.module:function"),
        ("no_such_module_anywhere:verify", "cannot import 'no_such_module_anywhere'.*PYTHONPATH"),
        ("math:no_such_function", "math holds nothing of that name"),
        ("math:pi", "math holds a float"),
    ],
)
def test_a_wrong_name_is_a_config_error(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_verifier(name)


def test_a_module_with_a_syntax_error_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, "verifiers_with_a_typo", monkeypatch, value="1 +")
    with pytest.raises(ConfigError, match="cannot import 'verifiers_with_a_typo'"):
        get_verifier("verifiers_with_a_typo:half")


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "-float('inf')", "None", "'1.0'", "[1.0]"])
def test_a_reward_that_is_no_finite_number_is_a_reward_error(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"verifiers_{abs(hash(value))}"
    write_module(tmp_path, module, monkeypatch, value=value)
    verify = get_verifier(f"{module}:broken")
    with pytest.raises(RewardError, match=f"{module}:broken returned .* must be a finite number") as error:
        verify("x" * 10_000, "137")
    assert "'137'" in str(error.value)
    assert len(str(error.value)) < 400


def test_finite_extremes_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, "verifiers_of_extremes", monkeypatch, value="-1e300")
    assert math.isclose(get_verifier("verifiers_of_extremes:broken")("", ""), -1e300)


def test_a_verifier_that_fails_is_named_with_its_response(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing.py").write_text("def judge(text, answer):\n    return {'a': 1.0}[text]\n", encoding="ascii")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RewardError, match=r"failing:judge failed with KeyError.*'b'.*'7'"):
        get_verifier("failing:judge")("b", "7")

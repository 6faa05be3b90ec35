"""Verifiers are found by name or import path; a wrong name is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacov.errors import ConfigError
from megacov.rewards.registry import find_verifier
from megacov.rewards.signature import wanted_values


def test_own_verifier_by_name() -> None:
    verify = find_verifier("sum_pairs")
    assert verify("45+92", "137") == 1.0
    assert verify("45+93", "137") == 0.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sum_pair", r"no verifier 'sum_pair'; use one of .*, sum_pairs, .*, or package"),
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
        find_verifier(name)


def test_a_module_with_a_syntax_error_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "verifiers_with_a_typo.py").write_text("def half(text, answer):\n    return 1 +\n", encoding="ascii")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot import 'verifiers_with_a_typo'"):
        find_verifier("verifiers_with_a_typo:half")


def _source(parameters: str) -> dict[str, object]:
    names: dict[str, object] = {}
    exec(f"def judge({parameters}): ...", names)  # noqa: S102 - the parameters are the subject
    return names


@pytest.mark.parametrize(
    ("parameters", "positional", "keywords"),
    [
        ("text, answer", "text answer", ""),
        ("response, gold, /", "text answer", ""),
        ("text, answer=None, *, timeout=5.0", "text answer", ""),
        ("text", "text", ""),
        ("*values", "text answer", ""),
        ("text, *rest", "text", ""),
        ("text, **rest", "text", ""),
        ("text, answer, prompt, row", "text answer", "prompt row"),
        ("text, prompt", "text", "prompt"),
        ("text, row, answer", "text", "row answer"),
        ("text, *, answer, num_tokens=0", "text", "answer num_tokens"),
        ("text, answer, *, finish_reason, **rest", "text answer", "finish_reason"),
    ],
)
def test_a_signature_asks_for_values(parameters: str, positional: str, keywords: str) -> None:
    wanted = wanted_values(_source(parameters)["judge"], "module:judge")  # type: ignore[arg-type]
    assert (wanted.positional, wanted.keywords) == (tuple(positional.split()), tuple(keywords.split()))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("text, answer, reference", "module:judge requires a parameter 'reference'.* prompt, row, finish_reason"),
        ("text, answer, prompt, /", "module:judge requires a parameter 'prompt'"),
        ("text, *, tolerance", "'tolerance'"),
        ("", "has no positional parameter"),
        ("*, text, answer", "has no positional parameter"),
        ("answer, text", "its first parameter is 'answer'"),
        ("prompt, answer", "its first parameter is 'prompt'"),
    ],
)
def test_a_signature_that_cannot_be_served_is_a_config_error(parameters: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wanted_values(_source(parameters)["judge"], "module:judge")  # type: ignore[arg-type]

"""Verifiers are found by name or import path; a wrong name is one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megacov.config import load_config
from megacov.errors import ConfigError
from megacov.rewards.loading import load_verifier
from megacov.rewards.registry import find_verifier, missing_package
from megacov.rewards.settings import VerifierSettings, verifiers_of
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


@pytest.mark.parametrize(
    ("parameters", "arguments", "message"),
    [
        ("text, answer, *, tolerance, unit=''", {"tolerance": 0.1}, None),
        ("text, answer, tolerance", {"tolerance": 0.1}, None),
        ("text, answer, **rest", {"anything": [1]}, None),
        ("text, answer, *, tolerance", {}, "requires a parameter 'tolerance'.* set it in data.sources.1.verifier_arg"),
        ("text, answer, *, tolerance=0", {"tolerence": 1}, "sets tolerence, and m:judge takes tolerance: correct"),
        ("text, answer", {"tolerance": 1}, "sets tolerance, and m:judge takes no arguments"),
        ("text, answer, row, *, unit=''", {"row": {}}, "sets row, which megacov passes to m:judge itself"),
        ("text, answer", {"answer": "7"}, "sets answer, which megacov passes"),
        ("text, answer, tolerance=0, /", {"tolerance": 1}, "takes no arguments"),
    ],
)
def test_arguments_fit_the_signature(parameters: str, arguments: dict[str, object], message: str | None) -> None:
    judge: Any = _source(parameters)["judge"]
    places = {"setting": "data.sources.1.verifier", "arguments_setting": "data.sources.1.verifier_arguments"}
    if message is None:
        wanted = wanted_values(judge, "m:judge", arguments=arguments, **places)
        assert (wanted.positional, wanted.keywords) == (("text", "answer"), ())
    else:
        with pytest.raises(ConfigError, match=rf"^data.sources.1.verifier.*{message}"):
            wanted_values(judge, "m:judge", arguments=arguments, **places)


@pytest.mark.parametrize("package", ["math_verify", "reasoning_gym.factory"])
def test_a_missing_optional_package_is_a_line_for_pip(package: str) -> None:
    error = missing_package(ModuleNotFoundError(name=package), "math", setting="rewards.verifier")
    assert re.fullmatch(
        r"rewards.verifier: math needs the package (math-verify|reasoning-gym), which is not installed: "
        r"pip install 'megacov\[(math|gym)\]'\.",
        str(error),
    )


def test_another_missing_module_is_a_defect() -> None:
    with pytest.raises(ModuleNotFoundError):
        missing_package(ModuleNotFoundError(name="not_a_package"), "math", setting="rewards.verifier")


def test_what_a_verifier_prepares_judges() -> None:
    settings = VerifierSettings("tests.support.answer_checks:prepares", {"word": "yes"})
    loaded = load_verifier(settings)
    assert (loaded.wanted.names, loaded.judges("yes", "")) == (("text", "answer", "finish_reason"), 0.0)
    ready = loaded.prepared()
    assert ready.wanted.names == ("text", "answer", "num_tokens") and ready.arguments == {}
    assert ready.judges("yes", "", num_tokens=3) == 3.0
    with pytest.raises(ConfigError, match="^rewards.arguments: word is empty"):
        load_verifier(VerifierSettings(settings.name, {"word": ""}))


def test_sources_that_judge_alike_share_a_verifier(tmp_path: Path) -> None:
    sources = [
        {"name": "a", "path": "a.jsonl"},
        {"name": "b", "path": "b.jsonl", "verifier": "one:judge", "verifier_arguments": {"x": 1}},
        {"name": "c", "path": "c.jsonl", "verifier": "one:judge"},
        {"name": "d", "path": "d.jsonl", "verifier": "sum_pairs"},
        {"name": "e", "path": "e.jsonl", "verifier_arguments": {"y": 2}},
    ]
    settings = (f"data.sources={json.dumps(sources)}", "data.path=null", f"run.directory={tmp_path}")
    found = verifiers_of(load_config("yaml_configs/runs/tiny_grpo.yaml", settings))
    assert found.of_source == (0, 1, 2, 0, 3)
    assert [(each.name, each.arguments) for each in found.settings] == [
        ("sum_pairs", {}),
        ("one:judge", {"x": 1}),
        ("one:judge", {}),
        ("sum_pairs", {"y": 2}),
    ]
    assert [(each.setting, each.arguments_setting) for each in found.settings] == [
        ("rewards.verifier", "rewards.arguments"),
        ("data.sources.1.verifier", "data.sources.1.verifier_arguments"),
        ("data.sources.2.verifier", "data.sources.2.verifier_arguments"),
        ("rewards.verifier", "data.sources.4.verifier_arguments"),
    ]

"""Suites: those of the repository, and broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacov.errors import ConfigError
from megacov.evaluation.suite import SUITES, find_suite, load_suite, settings_digest

GOOD = "{name: a, path: a.jsonl, verifier: sum_pairs}"


def _load(folder: Path, text: str):
    path = folder / "suite.yaml"
    path.write_text(text)
    return load_suite(path)


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.yaml")))
def test_the_suites_of_the_repository_can_be_read(name):
    assert load_suite(find_suite(name)).name == name


def test_the_papers_suite_is_the_papers():
    """Section 1.4 of the facts: AIME and AMC sampled 32 times at 0.6, the rest greedy, 8192 tokens."""
    sets = {each.name: each for each in load_suite(find_suite("paper")).sets}
    assert list(sets) == ["AIME24", "AIME25", "AMC23", "MATH-500", "OMNI-MATH", "OlympiadBench", "Minerva"]
    for name, each in sets.items():
        is_sampled = name in ("AIME24", "AIME25", "AMC23")
        assert each.greedy is not is_sampled
        assert each.samples == (32 if is_sampled else 1)
        assert each.sampling_temperature == (0.6 if is_sampled else 0.0)
        assert (each.max_response_length, each.verifier) == (8192, "math")
        assert each.instruction is not None
        assert "{prompt}" in each.instruction
        assert "boxed" in each.instruction


def test_defaults_are_shared_and_a_sets_own_settings_win(tmp_path):
    other = "{name: b, path: a.jsonl, verifier: sum_pairs, samples: 2}"
    suite = _load(tmp_path, f"name: s\ndefaults: {{samples: 4, temperature: 0.5}}\nsets: [{GOOD}, {other}]")
    assert [(each.samples, each.temperature) for each in suite.sets] == [(4, 0.5), (2, 0.5)]


def test_digests_differ_by_any_setting_and_not_by_spelling(tmp_path):
    first = _load(tmp_path, f"name: s\nsets: [{GOOD}]")
    spelt = _load(tmp_path, f"name: s\nworkers: 4\ndefaults: {{samples: 1}}\nsets: [{GOOD}]")
    other = _load(tmp_path, f"name: s\ndefaults: {{top_p: 0.9}}\nsets: [{GOOD}]")
    assert settings_digest(first) == settings_digest(spelt)
    assert settings_digest(first) != settings_digest(other)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("[1]", "it must hold name and sets"),
        ("name: s", "sets must be a list of sets that is not empty"),
        ("name: s\nsets: []", "sets must be a list of sets that is not empty"),
        ("name: s\nsets: {a: 1}", "sets must be a list"),
        ("name: s\nsets: [3]", "set 1 is 3"),
        (f"name: s\nsets: [{GOOD}]\ndefaults: 3", "defaults is 3"),
        (f"sets: [{GOOD}]", "name is missing"),
        (f"name: s\nsets: [{GOOD}]\nworker: 3", "did you mean workers"),
        (f"name: s\nsets: [{GOOD}, {GOOD}]", "two sets have the same name"),
        ("name: s\nsets: [{name: a, path: b}]", r"set 1 \('a'\): verifier is missing"),
        (f"name: s\ndefaults: {{sample: 3}}\nsets: [{GOOD}]", "did you mean samples"),
        (f"name: s\ndefaults: {{temperature: 0.0}}\nsets: [{GOOD}]", "temperature is 0.0: it must be a number, above"),
        (f"name: s\ndefaults: {{greedy: true, samples: 2}}\nsets: [{GOOD}]", "greedy is true and samples is 2"),
        (f"name: s\ndefaults: {{samples: 4, pass_at: [1, 8]}}\nsets: [{GOOD}]", "pass_at holds 8 and samples is 4"),
        (f"name: s\ndefaults: {{samples: 4, maj_at: [8]}}\nsets: [{GOOD}]", "maj_at holds 8 and samples is 4"),
        (f"name: s\ndefaults: {{samples: 4, maj_at: [2, 2]}}\nsets: [{GOOD}]", "maj_at holds a number twice"),
        (f"name: s\ndefaults: {{pass_at: [0]}}\nsets: [{GOOD}]", r"pass_at\[0\] is 0"),
        (f"name: s\ndefaults: {{chat_template: false, system_prompt: x}}\nsets: [{GOOD}]", "chat_template is false"),
        ("name: s\nsets: [*a]", "suite.yaml"),
    ],
)
def test_a_broken_suite_is_one_sentence(tmp_path, text, complaint):
    with pytest.raises(ConfigError, match=complaint) as error:
        _load(tmp_path, text)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "suite.yaml") in str(error.value)


def test_a_suite_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_suite(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="there is no suite 'papre': give a YAML file, or one of .*paper"):
        find_suite("papre")

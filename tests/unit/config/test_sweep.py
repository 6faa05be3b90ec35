"""Sweeps as files: mistakes end in one sentence, and every ready sweep consists of runs that can begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacov.config import config_warnings, load_sweep
from megacov.config.fields import sections_in, sections_in_list
from megacov.config.section import Section
from megacov.config.sweep import SweepSection
from megacov.errors import ConfigError
from megacov.sweep.setting import fixed_settings
from megacov.sweep.study import check_corners

ROOT = Path(__file__).parents[3]
READY = sorted((ROOT / "yaml_configs" / "sweeps").glob("*.yaml"))
GRID = "search: {name: grid, over: {algorithm.loss.kl_coef: [0.5, 1.0]}}"
OPTUNA = "search: {name: optuna, trials: 3, space: [{key: optimizer.lr, low: 1e-5, high: 1e-3}]}"


def load(tmp_path: Path, search: str, *changes: str) -> SweepSection:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"name: tried\nbase: runs/base.yaml\n{search}\n")
    return load_sweep(path, changes)


@pytest.mark.parametrize(
    ("search", "change", "sentence"),
    [
        (GRID, "bas=x", "bas is not a setting: did you mean base?"),
        (GRID, "seeds=[1,1]", "seeds is [1, 1]: remove the seed that occurs twice."),
        (GRID, "seeds=[]", "seeds is []: it must be a list"),
        (GRID, "search.over={kl_coef: [1]}", "'kl_coef' is no dotted key of a setting"),
        (
            GRID,
            "search.over={run.seed: [1]}",
            "run.seed is set by the sweep for each run: remove it; seeds are in seeds.",
        ),
        (GRID, "search.over={a.b: [1, 1]}", "over.a.b is [1, 1]: give one or more values, none of them twice."),
        (GRID, "settings={algorithm.loss.kl_coef: 1}", "settings and search both set algorithm.loss.kl_coef"),
        (GRID, f"seeds={list(range(5001))}", "the sweep has 10002 runs and may have 10000"),
        (GRID, "search.name=grit", "search.name is grit (did you mean grid?): set it to grid, list or optuna."),
        (GRID, "objective.name=entropy_at_reward", "objective.reward is missing: add it"),
        (GRID, "objective={name: evaluation, set: a, score: best}", "objective.score is 'best'"),
        (OPTUNA, "search.space=[{key: a.b, low: 2, high: 1}]", "low is 2.0 and high is 1.0: low must be smaller."),
        (OPTUNA, "search.space=[{key: a.b, low: 0, high: 1, log: true}]", "log is true and low is 0.0"),
        (OPTUNA, "search.space=[{key: a.b, low: 0}]", "a.b needs low and high, or choices: add them."),
        (OPTUNA, "search.space=[{key: a.b, low: 0, choices: [1]}]", "a.b has choices and a range"),
        (OPTUNA, "search.space=[{key: a.b, low: 0, high: 1.5, whole: true}]", "whole is true and high is 1.5"),
        (OPTUNA, "search.pruner={name: medium}", "search.pruner.name is medium (did you mean median?)"),
        ("search: {name: list, entries: [{name: a}, {name: a}]}", "seeds=[0]", "two entries have the same name"),
        ("search: {name: list, entries: [{name: a/b}]}", "seeds=[0]", "name is 'a/b': start it with a letter or digit"),
        ("search: {name: list, entries: [{name: tmp_a}, {name: a}]}", "seeds=[0]", "being written begin with tmp_"),
        (GRID, "name=..", "name is '..': start it with a letter or digit"),
        (GRID, f"name={'a' * 81}", "80 characters at most"),
        (GRID, "objective={name: evaluation, set: 'a\\nb', score: avg@8}", "objective.set is 'a"),
        (
            OPTUNA,
            "search.space=[{key: a.b, low: -1e308, high: 1e308}]",
            "low is -1e+308: it must be a number, at least",
        ),
        (OPTUNA, "search.space=[{key: a.b, low: 1, high: 1e300, whole: true}]", "high is 1e+300: it must be a number"),
        (OPTUNA, "search.space=[{key: a.b, low: 0, high: 1, step: 1e-300}]", "step is 1e-300, of which 1e+09 do not"),
    ],
)
def test_a_mistake_ends_in_one_sentence(tmp_path, search, change, sentence):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, search, change)
    assert sentence in str(caught.value) and str(caught.value).startswith(f"{tmp_path / 'sweep.yaml'}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_paths_are_relative_to_the_file_of_the_sweep(tmp_path):
    search = "search: {name: list, entries: [{name: a, extends: [algorithms/a.yaml]}]}"
    sweep = load(tmp_path, search)
    assert sweep.base == tmp_path / "runs" / "base.yaml"
    assert sweep.search.entries[0].extends == (tmp_path / "algorithms" / "a.yaml",)
    assert sweep.directory == Path("runs", "tried")


def test_another_search_replaces_the_one_of_the_file(tmp_path):
    search = load(tmp_path, OPTUNA, "search={name: grid, over: {optimizer.lr: [1e-4]}}").search
    assert search.over == {"optimizer.lr": (1e-4,)}


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_sweep_consists_of_runs_without_a_warning(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = load_sweep(path)
    assert sweep.name == path.stem
    settings = check_corners(sweep) if sweep.search.name == "optuna" else fixed_settings(sweep)
    assert len(settings) == (2 if sweep.search.name == "optuna" else sweep.search.num_settings) >= 2
    assert [config_warnings(each.config) for each in settings] == [[]] * len(settings)


def test_there_are_ready_sweeps():
    assert {path.stem for path in READY} >= {"kl_cov_ratio", "kl_coef", "entropy_coef", "kl_cov_optuna"}


def _fields(section: type[Section]) -> set[str]:
    names = set(section.model_fields)
    for field in section.model_fields.values():
        for inner in (*sections_in(field), *sections_in_list(field)):
            names |= _fields(inner)
    return names


def test_the_page_names_every_setting_of_a_sweep():
    page = (ROOT / "docs" / "sweeps.md").read_text()
    assert {name for name in _fields(SweepSection) if f"`{name}`" not in page and f"{name}:" not in page} == set()

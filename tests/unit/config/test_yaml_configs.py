"""Every YAML file of the repository is a configuration or a part of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megacov.config import config_warnings, load_config
from megacov.config.algorithm import GroupRelativeAdvantages
from megacov.config.schema import RunConfig
from megacov.config.suite import SuiteSection
from megacov.config.sweep import SweepSection
from megacov.config.yaml_text import parse_yaml

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "yaml_configs").rglob("*.yaml"))
RUNS = [path for path in FILES if "run" in parse_yaml(path.read_text(), source=str(path))]
ALGORITHMS = sorted((ROOT / "yaml_configs" / "algorithms").glob("*.yaml"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_files_to_test():
    assert {path.stem for path in RUNS} >= {"tiny_grpo", "tiny_clip_cov", "tiny_kl_cov"}
    assert {path.stem for path in ALGORITHMS} >= {"grpo", "clip_cov", "kl_cov"}


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_a_run_loads_without_a_warning_and_carries_its_own_name(path):
    config = load_config(path)
    assert config_warnings(config) == []
    assert config.run.name == path.stem
    assert config.run.directory == Path("runs", path.stem)


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_a_run_names_files_that_exist(path):
    config = load_config(path)
    for named in (config.model.path, *map(Path, config.data.path)):
        # The data of larger runs is not part of the repository.
        if named.parts[0] == "examples":
            assert (ROOT / named).exists()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=name_of)
@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_an_algorithm_composes_with_any_run(run, algorithm, tmp_path):
    both = tmp_path / "both.yaml"
    both.write_text(f"extends: [{run}, {algorithm}]")
    config = load_config(both)
    written = parse_yaml(algorithm.read_text(), source=str(algorithm))["algorithm"]
    assert config.algorithm.advantages.name == written["advantages"]["name"]
    assert config.algorithm.loss.name == written["loss"]["name"]
    assert config.algorithm.selection.name == written["selection"]["name"]


def test_an_algorithm_laid_over_another_is_that_algorithm(tmp_path):
    """Whatever the other one has switched on: a controller, an entropy mask, entropy as a reward."""
    alone = {path: load_config(RUNS[0], over=[path]).algorithm for path in ALGORITHMS}
    assert {algorithm.controller.name for algorithm in alone.values()} >= {"none", "pi", "adaptive_entropy"}
    run = load_config(RUNS[0]).model_dump(mode="json")
    values = {name: run[name] for name in ("run", "model", "data", "rewards", "batch")}
    base = tmp_path / "base.yaml"
    for below, algorithm in alone.items():
        base.write_text(json.dumps({**values, "algorithm": algorithm.model_dump(mode="json")}))
        for path, expected in alone.items():
            assert load_config(base, over=[path]).algorithm == expected, (below.name, path.name)


def test_an_algorithm_leaves_what_goes_with_any_method(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(f"extends: {RUNS[0]}\nalgorithm: {{ref_kl_coef: 0.01, ref_kl_max_gap: 5.0}}\n")
    for path in ALGORITHMS:
        algorithm = load_config(base, over=[path]).algorithm
        assert (algorithm.ref_kl_coef, algorithm.ref_kl_max_gap) == (0.01, 5.0), path


@pytest.mark.parametrize(
    ("name", "loss", "selection"),
    [
        ("grpo", {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}, {}),
        (
            "clip_cov",
            {"clip_low": 1.0, "clip_high": 1.0, "dual_clip": None},
            {"ratio": 2e-4, "lower": 1.0, "upper": 5.0},
        ),
        ("kl_cov", {"kl_coef": 1.0, "estimator": "abs"}, {"ratio": 2e-4, "min_cov": None}),
    ],
)
def test_the_algorithms_of_the_paper_have_its_values(name, loss, selection, tmp_path):
    base = ROOT / "yaml_configs" / "runs" / "tiny_grpo.yaml"
    both = tmp_path / "both.yaml"
    both.write_text(f"extends: [{base}, {ROOT / 'yaml_configs' / 'algorithms' / name}.yaml]")
    algorithm = load_config(both).algorithm
    assert algorithm.loss.hyperparameters() == loss
    assert algorithm.selection.hyperparameters() == selection
    assert algorithm.selection.scope == "mini_batch"
    assert algorithm.advantages == GroupRelativeAdvantages(normalize_std=True)
    assert (algorithm.aggregation, algorithm.entropy_coef, algorithm.ref_kl_coef) == ("token_mean", 0, 0)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_begins_by_saying_what_it_is_and_names_known_sections(path):
    text = path.read_text()
    assert text.startswith("# ")
    others = {"suites": {*SuiteSection.model_fields, "defaults"}, "sweeps": set(SweepSection.model_fields)}
    fields = others.get(path.parent.name, set(RunConfig.model_fields))
    assert set(parse_yaml(text, source=str(path))) <= {*fields, "extends"}

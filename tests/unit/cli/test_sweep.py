"""The arguments of `megacov sweep`, without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megacov.cli.main import app
from megacov.errors import ConfigError

ROOT = Path(__file__).parents[3]
GRID = str(ROOT / "yaml_configs" / "sweeps" / "kl_cov_ratio.yaml")
OPTUNA = str(ROOT / "yaml_configs" / "sweeps" / "kl_cov_optuna.yaml")


def test_a_dry_run_shows_the_settings_and_writes_nothing(tmp_path):
    result = CliRunner().invoke(app, ["sweep", GRID, "--dry-run", "seeds=[0]", f"directory={tmp_path / 'sweep'}"])
    assert result.exception is None, result.output
    assert "ratio_0.03: algorithm.selection.ratio=0.03" in result.output
    assert f"6 settings, 6 runs, 1 at once, in {tmp_path / 'sweep'}" in result.output
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([GRID, "--wait"], "--wait is for runs on SLURM: add --slurm."),
        ([OPTUNA, "--retry-failed"], "--retry-failed is for grids and lists: raise search.trials"),
        (
            [GRID, "objective={name: evaluation, set: sum_pairs, score: pass@4}", "--dry-run"],
            "evaluation.suite is null",
        ),
        (
            [
                GRID,
                "objective={name: evaluation, set: sum_pairs, score: pass@4}",
                "settings={evaluation.suite: sum_pairs, run.steps: 9}",
            ],
            "evaluation.every is 10 and run.steps is 9, so that a run would end without one: evaluate more often.",
        ),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments, sentence, tmp_path):
    result = CliRunner().invoke(app, ["sweep", *arguments, f"directory={tmp_path / 'sweep'}"])
    assert isinstance(result.exception, ConfigError) and sentence in str(result.exception), result.output
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        ({"set": "sum", "score": "pass@4"}, "objective.set is sum, and the suite sum_pairs has sum_pairs: name one."),
        ({"set": "sum_pairs", "score": "pass@3"}, "has avg@8, pass@1, pass@4, pass@8, maj@4, maj@8: name one."),
    ],
)
def test_a_score_that_evaluations_will_not_have_is_refused(objective, sentence):
    changes = ["settings={evaluation.suite: sum_pairs}", f"objective={json.dumps({'name': 'evaluation', **objective})}"]
    result = CliRunner().invoke(app, ["sweep", GRID, "--dry-run", *changes])
    assert isinstance(result.exception, ConfigError) and sentence in str(result.exception), result.output


def test_a_base_need_not_be_a_whole_run_for_its_scores_to_be_looked_up(tmp_path):
    (tmp_path / "part.yaml").write_text("algorithm: {loss: {name: ppo_clip}}\n")
    sweep = tmp_path / "sweep.yaml"
    entries = [{"name": "whole", "extends": ["whole.yaml"], "settings": {"run.steps": 20}}]
    (tmp_path / "whole.yaml").write_text(f"extends: {ROOT / 'yaml_configs' / 'runs' / 'tiny_grpo.yaml'}\n")
    objective = {"name": "evaluation", "set": "sum_pairs", "score": "pass@4"}
    parts = {"search": {"name": "list", "entries": entries}, "objective": objective}
    sweep.write_text(
        json.dumps({"name": "s", "base": "part.yaml", "settings": {"evaluation.suite": "sum_pairs"}, **parts})
    )
    result = CliRunner().invoke(app, ["sweep", str(sweep), "--dry-run"])
    assert result.exception is None and "1 settings, 1 runs" in result.output, result.exception


def test_a_rank_of_another_launcher_starts_no_sweep(monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "9",
    }.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["sweep", GRID])
    assert "call it once, without torchrun or srun" in str(result.exception)


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("megacov.cli.sweep.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["sweep", OPTUNA, "--dry-run"])
    assert "optuna is not installed: pip install 'megacov[sweep]', or search a grid." in str(result.exception)

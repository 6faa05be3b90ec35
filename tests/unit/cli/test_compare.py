"""`megacov compare` from the arguments to the table and the picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from megacov.cli.compare import compare
from megacov.errors import DataError
from megacov.monitor.tensorboard import MetricWriter

STEPS = np.arange(64)


@pytest.fixture
def runs(tmp_path) -> Path:
    """Folder of two runs: entropy at reward 0.75 is 1.25 in grpo_seed1 and 2.5 in kl_cov_seed1."""
    for name, loss, rewards, entropies in (
        ("grpo_seed1", "ppo_clip", STEPS / 32, 2 - STEPS / 32),
        ("kl_cov_seed1", "kl_cov", STEPS / 64, 4 - STEPS / 32),
    ):
        with MetricWriter(tmp_path / name / "tensorboard") as writer:
            for step, (reward, entropy) in enumerate(zip(rewards, entropies, strict=True)):
                writer.write_scalars({"reward/mean": reward, "entropy/token_mean": entropy}, step=step)
        config = {"run": {"name": name, "seed": 1}, "algorithm": {"loss": {"name": loss}}}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def run_compare(*arguments: object):
    app = typer.Typer()
    app.command()(compare)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ratios(output: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[-1] for line in output.splitlines() if line.strip().endswith("x")}


def test_the_first_run_is_the_baseline_unless_one_is_named(runs):
    picture = runs / "figures" / "compare.png"
    options = ("--reward", 0.75, "--output", picture)
    grpo, kl_cov = runs / "grpo_seed1", runs / "kl_cov_seed1"
    result = run_compare(grpo, kl_cov, *options)
    assert result.exit_code == 0, result.output
    assert ratios(result.output) == {"grpo_seed1": "1.00x", "kl_cov_seed1": "2.00x"}
    assert f"Picture: {picture}" in result.output
    assert picture.stat().st_size > 10_000
    # A baseline that is not among the runs joins them; a run that is given twice is shown once.
    result = run_compare(kl_cov, kl_cov, "--baseline", grpo, *options)
    assert ratios(result.output) == {"kl_cov_seed1": "2.00x", "grpo_seed1": "1.00x"}


def test_a_missing_run_is_a_data_error(runs):
    result = run_compare(runs / "grpo_seed1", runs / "other")
    assert isinstance(result.exception, DataError)
    assert "other is not a folder" in str(result.exception)


def test_neither_the_verb_nor_reading_runs_imports_torch(runs):
    code = f"""
import sys
import megacov.cli.compare
heavy = {{"torch", "matplotlib", "tensorboard", "numpy"}} & sys.modules.keys()
assert not heavy, heavy
from pathlib import Path
megacov.cli.compare.compare([Path({str(runs / "grpo_seed1")!r})], output=Path({str(runs / "compare.png")!r}))
assert "torch" not in sys.modules
"""
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=120)
    assert (runs / "compare.png").is_file()


@pytest.mark.parametrize("reward", ["nan", "inf"])
def test_a_reward_that_is_no_number_is_refused(runs, reward):
    result = run_compare(runs / "grpo_seed1", "--reward", reward, "--output", runs / "compare.png")
    assert isinstance(result.exception, DataError) and f"--reward is {reward}" in str(result.exception)
    assert not (runs / "compare.png").exists()

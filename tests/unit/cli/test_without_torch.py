"""`megacov check` on a login node, where torch need not be; and a loss that is imported, which needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megacov.cli.main import app
from megacov.errors import ConfigError

ROOT = Path(__file__).parents[3]
ONE = "yaml_configs/runs/qwen2.5_32b_kl_cov_8n.yaml"
IMPORTED = "examples/custom_loss/run.yaml"
# The packages that a login node need not have.
HEAVY = ("torch", "transformers", "megatron", "transformer_engine", "safetensors", "tensorboard", "numpy")


def run_without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a login node would run it."""
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Absent())
from megacov.cli.main import main
sys.argv = ['megacov', *{arguments!r}]
main()
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_it_runs_where_torch_is_not_installed() -> None:
    result = run_without_torch("check", ONE, "--suggest")
    assert result.returncode == 0, result.stderr
    assert "fullest moment" in result.stdout
    assert "Layouts of 32 GPUs that fit" in result.stdout


def test_a_loss_that_is_imported_is_checked_where_torch_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["check", "--deep", IMPORTED])
    assert result.exception is None, result.output
    assert result.output.endswith("The run fits.\n")
    result = CliRunner().invoke(app, ["check", "--deep", IMPORTED, "algorithm.loss.powr=0.5"])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "algorithm.loss.powr is not a setting: did you mean algorithm.loss.power?"


def test_a_check_that_is_not_deep_imports_no_plug_in() -> None:
    result = run_without_torch("check", IMPORTED, "algorithm.loss.powr=0.5")
    assert result.returncode == 0, result.stderr
    words = (
        "algorithm.loss.name examples.custom_loss.power_ratio:power_ratio is imported by `megacov check --deep` only."
    )
    assert f"not looked at: {words}" in result.stdout
    assert result.stdout.endswith("The run fits, as far as has been looked at.\n")

"""`megacov resume` of a run that has nothing left to do, which needs neither ranks nor torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from megacov.checkpoint.finished import note_finished
from megacov.cli.main import app
from megacov.config import dump_config, load_config
from megacov.errors import ConfigError


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run of six steps that has ended."""
    config = load_config("yaml_configs/runs/tiny_grpo.yaml", [f"run.directory={tmp_path}", "run.steps=6"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    (tmp_path / "checkpoints").mkdir()
    note_finished(tmp_path, step=6)
    return tmp_path


def test_a_finished_run_is_called_finished(finished: Path) -> None:
    before = (finished / "config.yaml").read_text()
    result = CliRunner().invoke(app, ["resume", str(finished), "parallel.data=2"])
    assert result.exit_code == 0
    assert result.output == (
        f"megacov: {finished} has finished: all 6 steps of run.steps are done. To train on, give run.steps=N.\n"
    )
    assert (finished / "config.yaml").read_text() == before


def test_a_folder_may_have_a_name_that_yaml_would_cut(finished: Path) -> None:
    folder = finished.rename(finished.with_name("my run #1: a"))
    result = CliRunner().invoke(app, ["resume", str(folder), "run.steps=4"])
    assert f"the run in {folder} has done 6 steps" in str(result.exception)


def test_fewer_steps_than_are_done_are_a_mistake(finished: Path) -> None:
    before = (finished / "config.yaml").read_text()
    result = CliRunner().invoke(app, ["resume", str(finished), "run.steps=4"])
    assert isinstance(result.exception, ConfigError) and result.exception.exit_code == 2
    assert "run.steps is 4" in str(result.exception) and "has done 6 steps" in str(result.exception)
    assert (finished / "config.yaml").read_text() == before

"""An alarm that the configuration names ends a run on real ranks: all leave together, saved, and a resume continues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megacov.errors import AlarmError
from megacov.monitor.alarms import AlarmSettings, find_alarms
from megacov.monitor.alarms_file import read_alarms
from megacov.monitor.event_reader import read_history
from tests.support.command import run

KL_COV = "yaml_configs/runs/tiny_kl_cov.yaml"
# With one optimizer step a rollout, KL-Cov's penalty has no gradient, which five steps in a row show.
INERT = ("rollout.prompts_per_step=4", "batch.micro_batch_tokens=64", "batch.updates_per_rollout=1", "run.steps=7")


def train_until_the_alarm(folder: Path, log: Path) -> str:
    """A run that kl_cov_inert ends at step 5; its output."""
    overrides = (f"run.directory={folder}", "parallel.data=2", "checkpoint.every=100", "monitor.end_on=[kl_cov_inert]")
    ended = run("train", KL_COV, *INERT, *overrides, log=log)
    assert (ended.code, ended.left) == (AlarmError.exit_code, []), ended.output
    return ended.output


@pytest.mark.dist
def test_an_alarm_ends_a_run_on_all_ranks_and_saves_it(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    output = train_until_the_alarm(folder, log)
    assert output.count("monitor.end_on ends the run (step 5 is saved; continue with `megacov resume") == 1
    assert "step 5/7" in output and "step 6/7" not in output and "Traceback" not in output
    assert [path.name for path in (folder / "checkpoints").glob("step_*")] == ["step_00000005"]
    (alarm,), _ = read_alarms(folder)
    assert (alarm.kind, alarm.step) == ("kl_cov_inert", 5)
    status = json.loads(run("status", str(folder), "--json", log=log).output)
    assert status["state"]["word"] == "stopped" and status["state"]["exit_code"] == AlarmError.exit_code
    assert [each["kind"] for each in status["alarms"]] == ["kl_cov_inert"]


@pytest.mark.dist
@pytest.mark.slow
def test_a_resumed_run_is_not_ended_by_an_alarm_that_lasts(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    train_until_the_alarm(folder, log)
    before = read_alarms(folder)
    resumed = run("resume", str(folder), log=log)
    assert resumed.code == 0 and "step 7/7" in resumed.output, resumed.output
    assert read_alarms(folder) == before
    assert find_alarms(read_history(folder / "tensorboard"), AlarmSettings(updates_per_rollout=1)) == before[0]

"""Evaluations while a run trains: they change nothing of the training, and a resumed run repeats none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megacov.checkpoint.finished import FINISHED_NAME
from megacov.evaluation.tensorboard import FOLDER
from tests.end_to_end.test_train import KL_COV, SMALL, scalars_of
from tests.support.command import run

SETTINGS = (*SMALL, "run.steps=3", "run.deterministic=true", "checkpoint.every=1")


def write_suite(folder: Path, **settings: object) -> str:
    """A suite of six problems in the folder; gives the path of its file."""
    rows = Path("examples/sum_pairs/prompts.jsonl").read_text().splitlines()[:6]
    (folder / "problems.jsonl").write_text("\n".join(rows))
    values = {
        "name": "few",
        "path": "problems.jsonl",
        "prompt_field": "prompt",
        "chat_template": False,
        "verifier": "sum_pairs",
        "samples": 2,
        "max_response_length": 8,
        "extract": "text",
    }
    path = folder / "suite.yaml"
    path.write_text(json.dumps({"name": "small", "workers": 1, "sets": [values | settings]}))
    return str(path)


def _results(folder: Path, step: int) -> bytes:
    return (folder / "evaluations" / f"step_{step}.json").read_bytes()


def _evaluation(folder: Path, **settings: object) -> str:
    values = {"suite": write_suite(folder), "data": str(folder), "every": 1, "at_start": True}
    return f"evaluation={json.dumps(values | settings)}"


@pytest.mark.dist
def test_evaluations_change_nothing_of_the_training(tmp_path: Path) -> None:
    plain, folder = tmp_path / "plain", tmp_path / "run"
    assert run("train", KL_COV, *SETTINGS, f"run.directory={plain}", log=tmp_path / "plain.log").code == 0
    evaluation = _evaluation(tmp_path, max_wait_share=0.0)  # so that pushes set evaluations aside
    ended = run("train", KL_COV, *SETTINGS, f"run.directory={folder}", evaluation, log=tmp_path / "log")
    assert (ended.code, ended.left) == (0, []), ended.output
    assert "evaluation of step 3: few/avg@2 0." in ended.output
    weights = [(each / "weights" / "v3" / "model.safetensors").read_bytes() for each in (plain, folder)]
    assert weights[0] == weights[1]
    ours, theirs = ({t: v for t, v in scalars_of(each).items() if "perf/" not in t} for each in (folder, plain))
    assert ours == theirs
    report = json.loads(_results(folder, 3))
    assert (report["step"], report["sets"]["few"]["responses"]) == (3, 12)
    assert report["sets"]["few"]["weight_versions"] == [3, 3], "the run waits for the last evaluation"


@pytest.mark.slow
@pytest.mark.dist
def test_a_resumed_run_repeats_no_evaluation_before_its_checkpoint(tmp_path: Path) -> None:
    folder, again = tmp_path / "run", tmp_path / "again"
    evaluation = _evaluation(tmp_path, max_wait_share=1.0)
    ended = run("train", KL_COV, *SETTINGS, f"run.directory={folder}", evaluation, log=tmp_path / "log")
    assert ended.code == 0, ended.output
    events = EventAccumulator(str(folder / FOLDER))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/few/avg@2")] == [0, 1, 2, 3]
    assert [event.value for event in events.Scalars("eval/few/version_lag_max")] == [0.0] * 4

    # As if the run had been killed in its last step, with an evaluation of weights that are then trained again.
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("step_00000003", "v3", FINISHED_NAME))
    (again / "evaluations" / "step_3.json").write_text("of other weights")
    resumed = run("resume", str(again), log=tmp_path / "again.log")
    assert resumed.code == 0, resumed.output
    assert "evaluation of step 2" not in resumed.output
    assert "evaluation of step 3" in resumed.output
    assert [_results(again, step) for step in (2, 3)] == [_results(folder, step) for step in (2, 3)]

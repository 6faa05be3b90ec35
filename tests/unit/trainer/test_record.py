"""Rank 0 writes logged steps for TensorBoard and for `megacov status`, and shows every step."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megacov.config import load_config
from megacov.monitor.status_file import read_logged_steps
from megacov.trainer.algorithm import build_algorithm
from megacov.trainer.build import Run
from megacov.trainer.progress import ProgressReport
from megacov.trainer.recorder import open_recorder
from megacov.trainer.state import TrainState
from megacov.trainer.step import StepReport


def test_steps_that_are_logged_reach_the_status_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(
        "yaml_configs/runs/tiny_kl_cov.yaml", (f"run.directory={tmp_path}", "monitor.log_every=2", "run.steps=4")
    )
    parts: dict[str, Any] = dict.fromkeys(("policy", "rollout", "settings"))
    parts["checkpointer"] = SimpleNamespace(take_metrics=lambda: {"perf/save_s": 3.0} if run.state.step == 3 else {})
    algorithm = build_algorithm(config)
    progress = ProgressReport("tiny", num_steps=4, num_groups=1, choice="off")
    with ExitStack() as stack:
        recorder = open_recorder(config, algorithm, progress, stack, first_step=None, text_of_token=str)
        run = Run(config=config, state=TrainState(), algorithm=algorithm, recorder=recorder, **parts)
        for step in range(1, 5):
            run.state.step = step
            run.record(StepReport({"reward/mean": step / 8, "entropy/token_mean": 1.0}, None))
            if step == 2:  # everything but what the test itself reads again
                shutil.rmtree(tmp_path / "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(4, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("perf/save_s")] == [(4, 3.0)]
    assert events.Tensors("run/config/text_summary")
    (page,) = events.Tensors("custom_scalars__config__")
    assert b"entropy (nats)" in page.tensor_proto.string_val[0]
    assert b"law/ceiling_low" not in page.tensor_proto.string_val[0], "a run of KL-Cov has no law"
    assert [(each.step, each.values["reward/mean"]) for each in read_logged_steps(tmp_path) or ()] == [
        (2, 0.25),
        (4, 0.5),
    ]
    shown = capsys.readouterr().out
    assert shown.count("tiny  step ") == 4
    assert shown.count("tensorboard was deleted: it is made again, without earlier steps.") == 1


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    config = load_config("yaml_configs/runs/tiny_kl_cov.yaml", (f"run.directory={tmp_path}",))
    names = ("policy", "rollout", "algorithm", "settings", "checkpointer", "recorder")
    parts: dict[str, Any] = dict.fromkeys(names)
    run = Run(config=config, state=TrainState(step=1), **parts)
    run.record(StepReport({"reward/mean": 0.5}, None))
    assert list(tmp_path.iterdir()) == []

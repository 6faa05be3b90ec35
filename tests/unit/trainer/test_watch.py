"""The watch of a run on rank 0: law and alarms reach TensorBoard, file and log, and a resumed run finds the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megacov.config import RunConfig, load_config
from megacov.monitor.alarms import AlarmSettings, find_alarms
from megacov.monitor.alarms_file import read_alarms
from megacov.monitor.entropy_law import fit
from megacov.monitor.event_reader import read_history
from megacov.monitor.history import History
from megacov.monitor.tensorboard import MetricWriter
from megacov.trainer.watch import Watch

STEPS = 60
LAW = {f"law/{name}" for name in ("a", "b", "ceiling", "ceiling_low", "ceiling_high", "rmse")}


def config_of(folder: Path, *overrides: str) -> RunConfig:
    return load_config("yaml_configs/runs/tiny_grpo.yaml", (f"run.directory={folder}", *overrides))


def metrics_of(step: int) -> dict[str, float]:
    """A run whose entropy falls from 1.5 nats to 0.02, with the reward that the law gives it, and a stalled update."""
    entropy = 1.5 * np.exp(-step / 14)
    wave = 0.004 * np.sin(2.4 * step)
    update_s = 90.0 if 30 <= step < 35 else 1.0
    return {
        "entropy/token_mean": float(entropy),
        "reward/mean": float(0.9 - 0.2 * np.exp(entropy) + wave),
        "perf/update_s": update_s,
        "perf/step_s": update_s + 3.0,
        "perf/memory_bytes": 1e9,
    }


def train(folder: Path, first: int, last: int, *overrides: str) -> None:
    """Let a run log some steps: the first ones, or those of a resumed run."""
    resumed_at = None if first == 1 else first
    with MetricWriter(folder / "tensorboard", first_step=resumed_at) as writer:
        watch = Watch(config_of(folder, *overrides), writer, first_step=resumed_at)
        for step in range(first, last + 1):
            writer.write_scalars(metrics_of(step), step=step)
            watch.add_step(step, metrics_of(step))


def points(history: History) -> dict[str, list[tuple[int, float]]]:
    return {
        tag: list(zip(series.steps.tolist(), series.values.tolist(), strict=True))
        for tag, series in history.scalars.items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run without a break."""
    folder: Path = tmp_path_factory.mktemp("watch")
    train(folder, 1, STEPS)
    return folder


def test_the_law_is_written_from_step_20_on(whole):
    history = read_history(whole / "tensorboard")
    assert set(history.scalars) == LAW | set(metrics_of(1))
    for tag in LAW:
        assert history.scalars[tag].steps.tolist() == list(range(20, STEPS + 1))
    entropy, reward = (history.scalars[tag].values[:40] for tag in ("entropy/token_mean", "reward/mean"))
    law = fit(entropy, reward, conditions=())
    assert history.scalars["law/ceiling"].values[20] == pytest.approx(law.ceiling, rel=1e-5)
    low, high = (history.scalars[f"law/ceiling_{end}"].values[-1] for end in ("low", "high"))
    assert low < 0.7 < high  # 0.9 - 0.2, which the rewards were made of


def test_files_give_the_alarms_that_the_run_has_raised(whole):
    alarms, _ = read_alarms(whole)
    assert {"collapse", "stalled_phase"} <= {alarm.kind for alarm in alarms}
    stalled = next(alarm for alarm in alarms if alarm.kind == "stalled_phase")
    assert (stalled.step, stalled.cleared) == (32, 35)
    history = read_history(whole / "tensorboard")
    assert find_alarms(history, AlarmSettings(updates_per_rollout=4)) == alarms
    assert history.texts["alarm/stalled_phase"] == stalled.sentence


@pytest.mark.parametrize("saved", [10, 33, 50])
def test_a_resumed_run_finds_what_an_unbroken_one_finds(saved, whole, tmp_path):
    train(tmp_path, 1, 55)  # it is killed here, and its last checkpoint is older
    train(tmp_path, saved + 1, STEPS)
    assert read_alarms(tmp_path) == read_alarms(whole)
    assert points(read_history(tmp_path / "tensorboard")) == points(read_history(whole / "tensorboard"))


def test_the_log_has_each_alarm_once_and_why_there_is_no_law(tmp_path, capsys):
    train(tmp_path, 1, 40, "algorithm.entropy_coef=0.1")
    shown = capsys.readouterr()
    assert shown.err.count("megacov: alarm stalled_phase at step 32: perf/update_s is 90 s, and was 1 s in the 20") == 1
    assert shown.out.count("megacov: no entropy law at step 20: The run steers its entropy") == 1
    assert not LAW & set(read_history(tmp_path / "tensorboard").scalars)


def test_only_alarms_that_the_configuration_names_end_the_run(tmp_path):
    with MetricWriter(tmp_path / "tensorboard") as writer:
        watch = Watch(config_of(tmp_path, "monitor.end_on=[stalled_phase]"), writer, first_step=None)
        ending = []
        for step in range(1, 36):
            watch.add_step(step, metrics_of(step))
            ending += [] if watch.ending is None else [(step, watch.ending.kind)]
    assert ending == [(32, "stalled_phase")]


def damage(folder: Path) -> Path:
    """Overwrite a part in the middle of the only event file of a run."""
    (path,) = (folder / "tensorboard").glob("events.out.tfevents.*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)
    return path


def warnings(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if "warning" in line]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_damaged_event_file_is_named_when_the_run_continues(is_damaged, tmp_path, capsys):
    train(tmp_path, 1, 30)
    path = damage(tmp_path) if is_damaged else None
    capsys.readouterr()
    train(tmp_path, 26, 30)
    train(tmp_path, 28, 30)
    warned = warnings(capsys.readouterr().err)
    assert len(warned) == is_damaged, warned
    assert path is None or (f"{path} is damaged at byte" in warned[0] and "lost to charts, law and alarms" in warned[0])


def test_what_the_watch_cannot_read_of_earlier_steps_is_named(tmp_path, capsys):
    train(tmp_path, 1, 30)
    path = damage(tmp_path)
    capsys.readouterr()
    with MetricWriter(tmp_path / "elsewhere") as writer:  # so that nothing removes the damage before
        Watch(config_of(tmp_path), writer, first_step=31)
    (warned,) = warnings(capsys.readouterr().err)
    assert f"{path} is damaged" in warned

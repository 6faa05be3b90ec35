"""A place of a sweep whose runs end at once: each writes a run's folder, with curves that follow from its settings.

It stands in for hours of training, so that a test may kill a sweep at every event. What a sweep reads (TensorBoard's
files, finished.json) is written by the code that writes it in a real run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from megacov.checkpoint.finished import note_finished
from megacov.monitor.tensorboard import MetricWriter
from megacov.sweep.folder import Outcome
from megacov.sweep.setting import SweepRun


def write_run(
    folder: Path, *, name: str, seed: int, curve: list[tuple[float, float]], others: Mapping[str, float] | None = None
) -> None:
    """The folder of a run, with what is read of its configuration; `curve` has reward and entropy of each step.

    Every step logs `others` too.
    """
    folder.mkdir(parents=True)
    config = {"run": {"name": name, "seed": seed}, "algorithm": {"loss": {"name": "ppo_clip"}}}
    (folder / "config.yaml").write_text(json.dumps(config))
    with MetricWriter(folder / "tensorboard") as writer:
        for step, (reward, entropy) in enumerate(curve, start=1):
            writer.write_scalars({"reward/mean": reward, "entropy/token_mean": entropy, **(others or {})}, step=step)


def reward_of(run: SweepRun) -> float:
    """Best at a learning rate of 1e-4, and a little better with larger seeds."""
    return 1.0 - (math.log10(run.setting.config.optimizer.lr) + 4) ** 2 / 4 + run.seed / 100


class ScriptedPlace:
    """Runs that are over as soon as they start; `started` has their names in order, over all places of a test."""

    begins = "starts"

    def __init__(self, started: list[str], on_event: Callable[[str], None] = lambda what: None) -> None:
        self.started, self._on_event = started, on_event
        self.stopped: list[str] = []

    def start(self, runs: Sequence[SweepRun]) -> None:
        for run in runs:
            self.start_one(run)

    def start_one(self, run: SweepRun) -> None:
        self._on_event("before a start")
        self.started.append(run.name)
        last = self.reward_of(run)
        steps = run.setting.config.run.steps
        curve = [(last * step / steps, 2.0 - step / steps) for step in range(1, steps + 1)]
        write_run(run.directory, name=run.name, seed=run.seed, curve=curve, others=self.others(run))
        note_finished(run.directory, step=steps)
        self._on_event("after a start")

    def reward_of(self, run: SweepRun) -> float:
        return reward_of(run)

    def others(self, run: SweepRun) -> Mapping[str, float]:
        return {}

    def poll(self, run: SweepRun) -> Outcome | None:
        self._on_event("before an end")
        return Outcome("done") if (run.directory / "finished.json").exists() else None

    def stop(self, run: SweepRun) -> float:
        self.stopped.append(run.name)
        return 0.0

    def leave(self, is_impatient: Callable[[], bool]) -> None:
        del is_impatient

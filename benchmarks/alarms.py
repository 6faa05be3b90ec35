"""Runs that are built to raise each alarm, and healthy runs that raise none: a table of what fired, and when.

    python -m benchmarks.alarms [--only PATTERN] [--folder FOLDER]

Each run trains the tiny policy on one rank with the embedded server. `happened` is the step from which the thing itself
was there, by a rule that reads the run's metrics and no alarm; an alarm of a prediction fires before. Runs that the
folder holds already are not trained again. Exits with 1 if a run raises another set of alarms than it should.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from megacov.checkpoint.finished import read_finished
from megacov.config import load_config
from megacov.monitor.alarms import AlarmSettings, find_alarms
from megacov.monitor.alarms_file import read_alarms
from megacov.monitor.event_reader import read_history
from megacov.monitor.history import History

ROOT = Path(__file__).parents[1]
Rule = Callable[[History], int | None]


def first_step(tag: str, holds: Callable[[float, float], bool]) -> Rule:
    """A rule: the first step at which a condition holds between a tag's value and its first value."""

    def find(history: History) -> int | None:
        series = history.scalars[tag]
        hits = [int(s) for s, v in zip(series.steps, series.values, strict=True) if holds(v, series.values[0])]
        return hits[0] if hits else None

    return find


def reward_stops(history: History) -> int | None:
    """The first step whose next 20 steps have no better mean reward than the 10 before it."""
    reward = history.scalars["reward/mean"]
    for i in range(10, len(reward.values) - 20):
        if np.mean(reward.values[i : i + 20]) <= np.mean(reward.values[i - 10 : i]) + 0.01:
            return int(reward.steps[i])
    return None


def mismatch_doubles(history: History) -> int | None:
    """The first step after ten at which the mismatch is twice the mean of those ten."""
    mismatch = history.scalars["rollout/mismatch_k1_abs"]
    hits = np.flatnonzero(mismatch.values[10:] >= 2 * np.mean(mismatch.values[:10]))
    return int(mismatch.steps[10 + hits[0]]) if len(hits) else None


@dataclass(frozen=True)
class Built:
    """A run.

    name: name in the table.
    how: its configuration, and what is changed.
    config: name of a file in yaml_configs/runs.
    overrides: settings that are changed.
    raises: alarms that it must raise, each with the rule for when the thing happened; no other alarm may come.
    may_raise: alarms that come along.
    """

    name: str
    how: str
    config: str
    overrides: tuple[str, ...]
    raises: dict[str, Rule]
    may_raise: tuple[str, ...] = ()


FEW = ("rollout.prompts_per_step=8",)
COLLAPSED = first_step("entropy/token_mean", lambda now, begun: now <= 0.05)
RUNS = (
    Built(
        "inert",
        "KL-Cov, one update a rollout",
        "tiny_kl_cov",
        (*FEW, "run.steps=8", "batch.updates_per_rollout=1"),
        {"kl_cov_inert": first_step("policy/kl_penalty", lambda now, begun: now == 0)},
    ),
    Built(
        "empty_band",
        "Clip-Cov, band of 50 to 60",
        "tiny_clip_cov",
        (*FEW, "run.steps=14", "algorithm.selection.lower=50.0", "algorithm.selection.upper=60.0"),
        {
            "empty_band": first_step("selection/band_population", lambda now, begun: now == 0),
            "silent_collapse": first_step("entropy/token_mean", lambda now, begun: now <= 0.9 * begun),
        },
    ),
    Built(
        "truncation",
        "GRPO, responses of at most 2 tokens",
        "tiny_grpo",
        (*FEW, "run.steps=10", "rollout.max_response_length=2"),
        {"drifting_length": first_step("rollout/truncated_fraction", lambda now, begun: now >= 0.5)},
    ),
    Built(
        "stalled",
        "GRPO, the verifier takes 0.1 s longer from the 25th step on",
        "tiny_grpo",
        (
            *FEW,
            "run.steps=32",
            "optimizer.lr=1e-6",
            "rewards.verifier=benchmarks.alarm_verifiers:slow_from",
            "rewards.arguments={call: 1536, seconds: 0.1}",
        ),
        {"stalled_phase": lambda history: 25},
    ),
    Built(
        "explosion",
        "GRPO, entropy bonus of 0.5",
        "tiny_grpo",
        ("rollout.prompts_per_step=16", "run.steps=40", "optimizer.lr=1e-3", "algorithm.entropy_coef=0.5"),
        {"explosion": first_step("entropy/token_mean", lambda now, begun: now > 1.5 * begun)},
        ("drifting_length",),
    ),
    Built(
        "length",
        "GRPO, the reward is the number of characters",
        "tiny_grpo",
        (
            "rollout.prompts_per_step=16",
            "run.steps=40",
            "rollout.max_response_length=48",
            "rewards.verifier=benchmarks.alarm_verifiers:longest",
        ),
        {"drifting_length": first_step("rollout/length_mean", lambda now, begun: now >= 2 * begun)},
    ),
    Built(
        "mismatch",
        "GRPO, samples one step old, learning rate that warms up to 2e-3",
        "tiny_grpo",
        (
            "rollout.prompts_per_step=16",
            "run.steps=40",
            "rollout.max_staleness=1",
            "weight_sync.max_mismatch=null",
            "optimizer.lr=2e-3",
            "optimizer.warmup_steps=160",
        ),
        {"rising_mismatch": mismatch_doubles},
        ("collapse", "drifting_length"),
    ),
    Built(
        "clip_cov",
        "Clip-Cov of the quickstart",
        "tiny_clip_cov",
        (),
        {"collapse": COLLAPSED},
        ("empty_band", "silent_collapse"),
    ),
    Built("grpo", "GRPO of the quickstart", "tiny_grpo", (), {"collapse": COLLAPSED, "reward_ceiling": reward_stops}),
    Built(
        "healthy_slow",
        "GRPO of the quickstart, learning rate 1e-4, 60 steps",
        "tiny_grpo",
        ("run.steps=60", "optimizer.lr=1e-4"),
        {},
    ),
    Built("healthy_kl_cov", "KL-Cov of the quickstart", "tiny_kl_cov", (), {}),
    Built("healthy_graph_coloring", "KL-Cov of the graph coloring", "graph_coloring_kl_cov", (), {}),
)


def main(
    folder: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs", "alarms"),
    only: Annotated[str, typer.Option(help="Runs whose name matches this regular expression.")] = "",
) -> None:
    """Train the runs and print the table as Markdown."""
    print("| run | alarm | fired at step | happened at step |\n|---|---|---|---|", flush=True)
    is_good = True
    for built in RUNS:
        if re.search(only, built.name):
            is_good &= report(built, folder.absolute() / built.name)
    sys.exit(not is_good)


def report(built: Built, folder: Path) -> bool:
    """Train a run if it is missing, and print its rows.

    Args:
        built: the run.
        folder: its folder.

    Returns:
        Whether it has raised the alarms that it should, and its files give the same ones as the run itself.
    """
    if read_finished(folder) is None:
        command = ["train", f"yaml_configs/runs/{built.config}.yaml", f"run.directory={folder}", *built.overrides]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f"{built.name}.log").open("w", encoding="utf-8") as log:
            subprocess.run([sys.executable, "-m", "megacov", *command], cwd=ROOT, stdout=log, stderr=log, check=True)
    config = load_config(folder / "config.yaml", ())
    settings = AlarmSettings(**config.monitor.alarms.model_dump(), updates_per_rollout=config.batch.updates_per_rollout)
    history = read_history(folder / "tensorboard")
    alarms = find_alarms(history, settings)
    for alarm in alarms:
        happened = built.raises[alarm.kind](history) if alarm.kind in built.raises else "-"
        print(f"| {built.how} | `{alarm.kind}` | {alarm.step} | {happened} |", flush=True)
    if not alarms:
        print(f"| {built.how} | none | | |", flush=True)
    kinds = {alarm.kind for alarm in alarms}
    return set(built.raises) <= kinds <= set(built.raises) | set(built.may_raise) and alarms == read_alarms(folder)[0]


if __name__ == "__main__":
    typer.run(main)

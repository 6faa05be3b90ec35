"""Reads finished or running runs from their folders and compares their entropy at equal reward.

Entropy falls as reward rises whatever the algorithm, so entropy at equal steps favours the run that learns more slowly.
The fair figure is the entropy left when the reward first reaches a given value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megacov.config.yaml_text import read_yaml
from megacov.errors import ConfigError, DataError
from megacov.monitor.headline_tags import ENTROPY_TAG, REWARD_TAG

SMOOTHING_WINDOW = 5
"""Logged steps in the centred moving average of reward and entropy."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """The curves of one run, at the steps where both are logged.

    label: run.name without a trailing _seed<k>; runs of one label and loss are seeds of one algorithm.
    loss: algorithm.loss.name.
    steps, rewards, entropies: [number of logged steps].
    """

    name: str
    label: str
    seed: int
    loss: str
    steps: NDArray[np.int64]
    rewards: NDArray[np.float64]
    entropies: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where the smoothed reward first reaches the target, and the smoothed entropy there, in nats."""

    step: int
    entropy: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of a comparison: a run, or the means over the seeds of an algorithm.

    First and last values are of single logged steps, unsmoothed; entropies are in nats.
    crossing_step, entropy_at_reward: means over the runs that reached the target reward; None if none did.
    num_reached: how many of the num_runs reached it.
    """

    num_steps: float
    first_reward: float
    last_reward: float
    first_entropy: float
    last_entropy: float
    crossing_step: float | None
    entropy_at_reward: float | None
    num_reached: int
    num_runs: int

    @property
    def fall_factor(self) -> float:
        """First entropy over last entropy."""
        return self.first_entropy / self.last_entropy if self.last_entropy > 0 else math.inf


def read_run(directory: Path) -> Run:
    """Read a run folder: config.yaml and tensorboard/.

    Args:
        directory: run folder, as `megacov train` writes it.

    Returns:
        The run, with at least one step.

    Raises:
        DataError: the folder is missing, is not a run, or has no logged step yet.
    """
    name, seed, loss = _read_config(directory)
    rewards, entropies = _read_scalars(directory / "tensorboard")
    steps = [step for step in sorted(rewards.keys() & entropies.keys()) if _is_finite(rewards[step], entropies[step])]
    if not steps:
        raise DataError(f"{directory} has no step with both {REWARD_TAG} and {ENTROPY_TAG} yet: let it log one first.")
    return Run(
        name=name,
        label=re.sub(r"_seed\d+$", "", name),
        seed=seed,
        loss=loss,
        steps=np.array(steps, dtype=np.int64),
        rewards=np.array([rewards[step] for step in steps]),
        entropies=np.array([entropies[step] for step in steps]),
    )


def group_runs(runs: Iterable[Run]) -> list[list[Run]]:
    """Group the seeds of each algorithm: groups in order of first appearance, each sorted by seed."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.label, run.loss), []).append(run)
    return [sorted(group, key=lambda run: (run.seed, run.name)) for group in groups.values()]


def smooth(values: NDArray[np.float64], window: int = SMOOTHING_WINDOW) -> NDArray[np.float64]:
    """Centred moving average; near the ends, over the values that exist.

    Args:
        values: [n] in the order of the steps.
        window: odd number of values to average.

    Returns:
        [n] averages.
    """
    if len(values) == 0:
        return values
    kernel = np.ones(window)
    half = window // 2
    sums = np.convolve(values, kernel)[half : half + len(values)]
    counts = np.convolve(np.ones(len(values)), kernel)[half : half + len(values)]
    return sums / counts


def find_crossing(run: Run, reward: float) -> Crossing | None:
    """Where a run's smoothed reward first reaches a target.

    Args:
        run: curves of one run.
        reward: target of the smoothed reward.

    Returns:
        The step and the smoothed entropy there; None if the target is never reached.
    """
    reached = np.flatnonzero(smooth(run.rewards) >= reward)
    if len(reached) == 0:
        return None
    return Crossing(step=int(run.steps[reached[0]]), entropy=float(smooth(run.entropies)[reached[0]]))


def summarise(runs: Sequence[Run], reward: float) -> Summary:
    """Summarise one run, or the seeds of one algorithm.

    Args:
        runs: one or more runs.
        reward: target at which entropies are compared.

    Returns:
        Means over the runs.
    """
    crossings = [crossing for run in runs if (crossing := find_crossing(run, reward)) is not None]
    return Summary(
        num_steps=_mean(len(run.steps) for run in runs),
        first_reward=_mean(run.rewards[0] for run in runs),
        last_reward=_mean(run.rewards[-1] for run in runs),
        first_entropy=_mean(run.entropies[0] for run in runs),
        last_entropy=_mean(run.entropies[-1] for run in runs),
        crossing_step=_mean(crossing.step for crossing in crossings) if crossings else None,
        entropy_at_reward=_mean(crossing.entropy for crossing in crossings) if crossings else None,
        num_reached=len(crossings),
        num_runs=len(runs),
    )


def entropy_ratio(summary: Summary, baseline: Summary) -> float | None:
    """Entropy at equal reward, over the baseline's; None unless both reached the reward."""
    if summary.entropy_at_reward is None or not baseline.entropy_at_reward:
        return None
    return summary.entropy_at_reward / baseline.entropy_at_reward


def _read_config(directory: Path) -> tuple[str, int, str]:
    path = directory / "config.yaml"
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder: give the folder of a run, such as runs/<name>.")
    if not path.is_file():
        raise DataError(f"{directory} has no config.yaml: give the folder of a run, such as runs/<name>.")
    try:
        config = read_yaml(path, source=str(path))
        return str(config["run"]["name"]), int(config["run"]["seed"]), str(config["algorithm"]["loss"]["name"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not hold run.name, run.seed and algorithm.loss.name:"
            " restore the file that `megacov train` wrote there."
        ) from error


def _read_scalars(directory: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Reward and entropy by step; the later value where a step was logged twice."""
    if not any(directory.glob("events.out.tfevents.*")):
        raise DataError(f"{directory} has no TensorBoard events: the run has not started, or its folder was emptied.")
    # 0 keeps every scalar; the default drops some. The other kinds are not needed.
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "histograms": 1, "tensors": 1})
    logged = set(events.Reload().Tags()["scalars"])
    rewards, entropies = (
        {event.step: event.value for event in events.Scalars(tag)} if tag in logged else {}
        for tag in (REWARD_TAG, ENTROPY_TAG)
    )
    return rewards, entropies


def _is_finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))

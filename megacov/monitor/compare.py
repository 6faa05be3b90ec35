"""Reads finished or running runs from their folders and compares their entropy at equal reward.

Entropy falls as reward rises whatever the algorithm, so entropy at equal steps favours the run that learns more slowly.
The fair figure is the entropy left when the reward first reaches a given value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacov.config.yaml_text import read_yaml
from megacov.errors import ConfigError, DataError
from megacov.monitor.compare_scores import PassAtK, read_pass_at_k
from megacov.monitor.entropy_law import Reason, read_conditions
from megacov.monitor.entropy_law.curves import BEST_REWARD_TAGS, find_best_reward
from megacov.monitor.entropy_law.estimate import Interval
from megacov.monitor.entropy_law.student import t_quantile
from megacov.monitor.event_reader import read_history
from megacov.monitor.headline_tags import ENTROPY_TAG, REWARD_TAG
from megacov.monitor.history import History

SMOOTHING_WINDOW = 5
"""Logged steps in the centred moving average of reward and entropy."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """The curves of one run, at the steps where both are logged.

    label: run.name without a trailing _seed<k>; runs of one label and loss are seeds of one algorithm.
    loss: algorithm.loss.name.
    steps, rewards, entropies: [number of logged steps].
    conditions: what the settings have against the entropy law.
    best_reward: highest reward of any response; None where that is not logged.
    pass_at_k: scores of the last evaluations.
    problems: one sentence for each file that could not be read whole.
    """

    name: str
    label: str
    seed: int
    loss: str
    steps: NDArray[np.int64]
    rewards: NDArray[np.float64]
    entropies: NDArray[np.float64]
    conditions: tuple[Reason, ...] = ()
    best_reward: float | None = None
    pass_at_k: Mapping[PassAtK, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


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
    entropy_interval: 95 % interval of entropy_at_reward over the seeds; None if fewer than two reached it.
    num_reached: how many of the num_runs reached it.
    """

    num_steps: float
    first_reward: float
    last_reward: float
    first_entropy: float
    last_entropy: float
    crossing_step: float | None
    entropy_at_reward: float | None
    entropy_interval: Interval | None
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
    config = _read_config(directory)
    history = read_history(directory / "tensorboard", tags=(REWARD_TAG, ENTROPY_TAG, BEST_REWARD_TAGS[REWARD_TAG]))
    steps, rewards, entropies = _read_curves(history, directory)
    pass_at_k, problems = read_pass_at_k(directory)
    name = str(config["run"]["name"])
    return Run(
        name=name,
        label=re.sub(r"_seed\d+$", "", name),
        seed=int(config["run"]["seed"]),
        loss=str(config["algorithm"]["loss"]["name"]),
        steps=steps,
        rewards=rewards,
        entropies=entropies,
        conditions=read_conditions(config),
        best_reward=find_best_reward(history.scalars, REWARD_TAG),
        pass_at_k=pass_at_k,
        problems=(*history.problems, *problems),
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
        entropy_interval=seed_interval([crossing.entropy for crossing in crossings]),
        num_reached=len(crossings),
        num_runs=len(runs),
    )


def entropy_ratio(summary: Summary, baseline: Summary) -> float | None:
    """Entropy at equal reward, over the baseline's; None unless both reached the reward."""
    if summary.entropy_at_reward is None or not baseline.entropy_at_reward:
        return None
    return summary.entropy_at_reward / baseline.entropy_at_reward


def seed_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of a mean over seeds, by Student's t.

    Args:
        values: value of each seed.

    Returns:
        The interval; None for fewer than two seeds.
    """
    if len(values) < 2:
        return None
    half = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(float(np.mean(values)) - half, float(np.mean(values)) + half)


def _read_config(directory: Path) -> Mapping[str, Any]:
    """The configuration, with the values that a comparison needs."""
    path = directory / "config.yaml"
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder: give the folder of a run, such as runs/<name>.")
    if not path.is_file():
        raise DataError(f"{directory} has no config.yaml: give the folder of a run, such as runs/<name>.")
    try:
        config: Mapping[str, Any] = read_yaml(path, source=str(path))
        _ = str(config["run"]["name"]), int(config["run"]["seed"]), str(config["algorithm"]["loss"]["name"])
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): make it readable.") from error
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not hold run.name, run.seed and algorithm.loss.name:"
            " restore the file that `megacov train` wrote there."
        ) from error
    return config


def _read_curves(
    history: History, directory: Path
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Steps at which both are finite, rewards and entropies."""
    if REWARD_TAG in history.scalars and ENTROPY_TAG in history.scalars:
        reward, entropy = history.scalars[REWARD_TAG], history.scalars[ENTROPY_TAG]
        steps, of_reward, of_entropy = np.intersect1d(reward.steps, entropy.steps, return_indices=True)
        rewards, entropies = reward.values[of_reward], entropy.values[of_entropy]
        is_finite = np.isfinite(rewards) & np.isfinite(entropies)
        if is_finite.any():
            return steps[is_finite], rewards[is_finite], entropies[is_finite]
    missing = f"{directory} has no step with both {REWARD_TAG} and {ENTROPY_TAG} yet: let it log one first."
    raise DataError(" ".join((missing, *history.problems)))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))

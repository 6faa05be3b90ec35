"""What a run, or a setting over its seeds, is worth: one number by the sweep's objective, larger is better.

Entropy at equal reward has a value for every run. A run that reaches the reward is worth the entropy left there, which
is above 0; one that does not is worth its best reward minus the target, which is below 0, so that a search learns in
which direction the reward lies. A setting with seeds of both kinds counts as one that does not reach it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megacov.config.sweep import EntropyObjective, EvaluationObjective, Objective
from megacov.errors import DataError
from megacov.monitor.compare import Run, find_crossing, read_run, smooth
from megacov.monitor.event_reader import read_history

REWARD_STEPS = 10
"""Last logged steps of which tables and figures show the mean reward and entropy."""


@dataclass(frozen=True)
class RunValue:
    """What a run is worth.

    value: by the objective; None where the run has nothing to judge by.
    reward, entropy: means over the last logged steps; entropy in nats.
    steps: logged steps.
    problem: a sentence, if there is no value or a file could not be read whole.
    """

    value: float | None
    reward: float | None = None
    entropy: float | None = None
    steps: int = 0
    problem: str = ""


def value_of(directory: Path, objective: Objective) -> RunValue:
    """Judge a run by its folder.

    Args:
        directory: folder of the run, which may still train.
        objective: what counts.

    Returns:
        The value, with a sentence instead of an error where the folder has none.
    """
    try:
        run = read_run(directory)
        value = _evaluated(directory, objective) if isinstance(objective, EvaluationObjective) else None
    except DataError as error:
        return RunValue(None, problem=str(error))
    problem = run.problems[0] if run.problems else ""
    if isinstance(objective, EvaluationObjective):
        if value is None:
            problem = f"{directory} has no finished evaluation with {objective.score} of the set {objective.set}."
    else:
        value = curve_value(run, objective)
    last = slice(-REWARD_STEPS, None)
    reward, entropy = float(np.mean(run.rewards[last])), float(np.mean(run.entropies[last]))
    return RunValue(value, reward, entropy, len(run.steps), problem)


def curve_value(run: Run, objective: Objective) -> float:
    """The value of a run that ends with its last logged step.

    Args:
        run: curves of the run.
        objective: one that reads curves.

    Returns:
        Its value.
    """
    if isinstance(objective, EntropyObjective):
        crossing = find_crossing(run, objective.reward)
        if crossing is not None:
            return crossing.entropy
        return min(float(np.max(smooth(run.rewards))) - objective.reward, 0.0)
    assert not isinstance(objective, EvaluationObjective)
    return float(np.mean(run.rewards[-(objective.last_steps or 0) :]))


def values_by_step(directory: Path, objective: Objective, *, after: int) -> list[tuple[int, float]]:
    """What a run was worth after each of its newest steps, for pruners.

    Args:
        directory: folder of a run that trains.
        objective: what counts.
        after: last step that is known already.

    Returns:
        Step and value of later steps, in order; empty while there are none.
    """
    try:
        if isinstance(objective, EvaluationObjective):
            return [(step, value) for step, value in _evaluations(directory, objective) if step > after]
        run = read_run(directory)
    except DataError:
        return []
    return [
        (int(step), curve_value(_cut(run, at), objective)) for at, step in enumerate(run.steps, 1) if int(step) > after
    ]


def counted_values(values: Sequence[float], objective: Objective) -> list[float]:
    """What each seed adds to the value of a setting.

    Args:
        values: value of each seed.
        objective: what counts.

    Returns:
        The values; for entropy at equal reward, what each seed lacks if any does not reach the reward.
    """
    if isinstance(objective, EntropyObjective) and min(values, default=1.0) <= 0:
        return [min(value, 0.0) for value in values]
    return list(values)


def mean_value(values: Sequence[float], objective: Objective) -> float:
    """The value of a setting: the mean of `counted_values`."""
    return float(np.mean(counted_values(values, objective)))


def _cut(run: Run, num_steps: int) -> Run:
    return replace(
        run, steps=run.steps[:num_steps], rewards=run.rewards[:num_steps], entropies=run.entropies[:num_steps]
    )


def _evaluated(directory: Path, objective: EvaluationObjective) -> float | None:
    found = _evaluations(directory, objective)
    return found[-1][1] if found else None


def _evaluations(directory: Path, objective: EvaluationObjective) -> list[tuple[int, float]]:
    folder, tag = directory / "tensorboard" / "evaluation", f"eval/{objective.set}/{objective.score}"
    if not folder.is_dir():
        return []
    series = read_history(folder, tags=(tag,)).scalars.get(tag)
    if series is None:
        return []
    points = zip(series.steps, series.values, strict=True)
    return [(int(step), float(value)) for step, value in points if np.isfinite(value)]

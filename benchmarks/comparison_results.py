"""What came of the runs of benchmarks/comparison.py: values of each run, means and spreads of each method, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.comparison_plan import TaskSweeps
from megacov.config.sweep import SweepSection
from megacov.monitor.compare import Run, find_crossing, read_run
from megacov.monitor.event_reader import read_history
from megacov.sweep.folder import SweepFolder
from megacov.sweep.results import find_best, read_results
from megacov.sweep.setting import fixed_settings

LAST_STEPS = 10
"""Last logged steps whose mean is the reward, or entropy, at the end."""
BASELINE = "grpo"
"""Method whose steps cost 1."""
_STEP_TAG = "perf/step_s"


@dataclass(frozen=True)
class RunRow:
    """A run: its value of the hyperparameter, how it ended, and numbers by name, without those that it does not have.

    state: done, failed, waiting, or unreadable where a run that is done has no curves.
    numbers: reward and entropy at the end, area (mean reward of all steps), entropy_at_reward, step_s, pass@k;
        entropies in nats.
    seconds: how long it took, its start and its evaluation included.
    """

    value: float
    seed: int
    state: str
    numbers: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Method:
    """The runs of a method; best is the place of its best value in `tuning`, None while runs that tune are not over."""

    name: str
    keys: tuple[str, ...]
    tuning: tuple[RunRow, ...]
    best: int | None
    final: tuple[RunRow, ...]

    def values(self, number: str) -> list[float]:
        """A number of each final run that has it."""
        return [row.numbers[number] for row in self.final if number in row.numbers]

    def count(self, state: str) -> int:
        """How many final runs are in a state."""
        return sum(row.state == state for row in self.final)


def mean(values: Sequence[float]) -> float | None:
    """Mean over seeds; None without any."""
    return float(np.mean(values)) if values else None


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds, of a sample; None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def read_best(sweep: SweepSection) -> int | None:
    """The place of the best value among those that a sweep has tried.

    Args:
        sweep: a sweep that tunes.

    Returns:
        The place of the largest area under the reward, the first of equal ones; None if no run is done, or one is not
        over.
    """
    results = read_results(sweep, SweepFolder(sweep.directory), fixed_settings(sweep))
    if any(run.state == "waiting" for result in results for run in result.runs):
        return None
    best = find_best(results)
    return None if best is None else results.index(best)


def read_methods(sweeps: TaskSweeps) -> list[Method]:
    """Read all runs of a task that are over.

    Args:
        sweeps: the sweeps of the task.

    Returns:
        The methods in the order of the plan, also those without any run.
    """
    read = _reader(sweeps)
    methods = []
    for name in sweeps.entries:
        tuned, tuning = sweeps.tuned(name), sweeps.tuning(name)
        best = read_best(tuning)
        final: list[RunRow] = []
        if best is not None:
            final = read(sweeps.final(name, tuned.values[best]), [tuned.values[best]])
        methods.append(Method(name, tuned.keys, tuple(read(tuning, tuned.values)), best, tuple(final)))
    return methods


def _reader(sweeps: TaskSweeps) -> Callable[[SweepSection, Sequence[float]], list[RunRow]]:
    def read(sweep: SweepSection, values: Sequence[float]) -> list[RunRow]:
        rows = []
        results = read_results(sweep, SweepFolder(sweep.directory), fixed_settings(sweep))
        for value, result in zip(values, results, strict=True):
            for each in result.runs:
                is_read = each.state == "done" and each.value is not None and each.value.value is not None
                numbers = read_numbers(each.run.directory, sweeps.task.reward) if is_read else {}
                state = "unreadable" if each.state == "done" and not is_read else each.state
                seconds = each.outcome.seconds if each.outcome else 0.0
                rows.append(RunRow(value, each.run.seed, state, numbers, seconds))
        return rows

    return read


def read_numbers(directory: Path, reward: float) -> dict[str, float]:
    """Read the numbers of a run that is done.

    Args:
        directory: its folder.
        reward: reward at which entropy is looked at.

    Returns:
        Numbers by name, as in `RunRow`.

    Raises:
        DataError: the folder is no run, or has no logged step.
    """
    run = read_run(directory)
    numbers = {**_curve_numbers(run, reward), **{f"pass@{k}": score for (_, k), score in run.pass_at_k.items()}}
    steps = read_history(directory / "tensorboard", tags=(_STEP_TAG,)).scalars.get(_STEP_TAG)
    return numbers if steps is None else {**numbers, "step_s": float(np.median(steps.values))}


def _curve_numbers(run: Run, reward: float) -> dict[str, float]:
    numbers = {
        "reward": float(np.mean(run.rewards[-LAST_STEPS:])),
        "area": float(np.mean(run.rewards)),
        "entropy": float(np.mean(run.entropies[-LAST_STEPS:])),
    }
    crossing = find_crossing(run, reward)
    return numbers if crossing is None else {**numbers, "entropy_at_reward": crossing.entropy}


def number_names(sweeps: TaskSweeps) -> tuple[str, ...]:
    """Names of the numbers of a run, in the order of the tables."""
    scores = (f"pass@{k}" for k in sweeps.task.pass_at)
    return ("reward", "area", "entropy_at_reward", "entropy", *scores, "step_s")


def relative_costs(methods: Sequence[Method]) -> dict[str, list[float]]:
    """The cost of a step in steps of the baseline, by the median over the steps of a run.

    Args:
        methods: all methods.

    Returns:
        The cost in each final run, by method, over the mean of the baseline's runs; empty while it has none.
    """
    baseline = mean([value for each in methods if each.name == BASELINE for value in each.values("step_s")])
    return {each.name: [value / baseline for value in each.values("step_s")] for each in methods} if baseline else {}


def render_csv(sweeps: TaskSweeps, methods: Sequence[Method]) -> str:
    """Write a row for each run, of both stages.

    Args:
        sweeps: the sweeps of the task.
        methods: what `read_methods` returns.

    Returns:
        CSV with a line of column names; a number that a run does not have is empty.
    """
    text, names = io.StringIO(), number_names(sweeps)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "stage", "keys", "value", "is_best", "seed", "state", *names, "seconds"])
    for method in methods:
        for stage, rows in (("tuning", method.tuning), ("final", method.final)):
            for place, row in enumerate(rows):
                is_best = stage == "final" or place == method.best
                shown = [repr(row.numbers[name]) if name in row.numbers else "" for name in names]
                keys = " ".join(method.keys)
                writer.writerow(
                    [method.name, stage, keys, row.value, int(is_best), row.seed, row.state, *shown, row.seconds]
                )
    return text.getvalue()

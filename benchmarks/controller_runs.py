"""How near to its target a controller holds the entropy, before and after the learning rate doubles.

    megacov sweep yaml_configs/sweeps/target_entropy.yaml
    python -m benchmarks.controller_runs runs/target_entropy [--figure controller.png] [--at-once 2]

Copies each run of a finished sweep, continues the copy with twice the learning rate, and prints a table a phase. A copy
that is finished is not trained again, and one that was stopped continues. The last half of the steps of a phase counts.
Beside the reward there stands the largest that a constant of the same sweep had in the same phase while its own entropy
was as near to the target.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.controller_figure import write_figure
from benchmarks.scaling import table
from megacov.checkpoint.finished import read_finished
from megacov.config import load_config
from megacov.config.controller import PiController
from megacov.errors import DataError
from megacov.monitor.event_reader import read_history

NEAR = 0.1  # of the target
WINDOW = 10  # steps of the moving mean in which the sampling of prompts averages out
DISTURBED_STEPS = 80
ENTROPY, REWARD = "entropy/token_mean_t1", "reward/mean"


@dataclass(frozen=True)
class Course:
    """Curves of a run, one value a step.

    acts_on: setting that the controller sets; empty for a constant.
    target: nats; 0 for a constant.
    """

    setting: str
    acts_on: str
    target: float
    entropies: NDArray[np.float64]
    rewards: NDArray[np.float64]

    def last(self, steps: int) -> Course:
        """The curves of the last steps."""
        return replace(self, entropies=self.entropies[-steps:], rewards=self.rewards[-steps:])


def read_course(run: Path) -> Course:
    """Read a run's folder.

    Args:
        run: folder of a run.

    Returns:
        Its curves.

    Raises:
        DataError: the folder holds no run.
    """
    controller = load_config(run / "config.yaml").algorithm.controller
    scalars = read_history(run / "tensorboard", tags=(ENTROPY, REWARD)).scalars
    acts_on, target = "", 0.0
    if isinstance(controller, PiController):
        acts_on, target = controller.acts_on, controller.target_entropy
    return Course(run.name.rsplit("_seed")[0], acts_on, target, scalars[ENTROPY].values, scalars[REWARD].values)


def moving_mean(values: NDArray[np.float64], length: int = WINDOW) -> NDArray[np.float64]:
    """Mean of each `length` neighbouring values: [n] to [n - length + 1]."""
    return np.convolve(values, np.full(length, 1 / length), mode="valid")


def best_constant(constants: Sequence[Course], target: float) -> tuple[float, str]:
    """The largest reward that a constant setting had, over its seeds, while its entropy was near a target.

    Args:
        constants: runs without a controller.
        target: nats.

    Returns:
        Mean reward over those windows of ten steps whose mean entropy is within 10 % of the target, and the setting's
        name; (nan, "-") if no setting has one in each seed.
    """
    best = float("nan"), "-"
    for setting in sorted({course.setting for course in constants}):
        seeds = [course for course in constants if course.setting == setting]
        near = [np.abs(moving_mean(course.entropies) / target - 1) <= NEAR for course in seeds]
        if not all(part.any() for part in near):
            continue
        rewards = [moving_mean(course.rewards)[part] for course, part in zip(seeds, near, strict=True)]
        reward = float(np.mean(np.concatenate(rewards)))
        if not reward <= best[0]:
            best = reward, setting
    return best


def disturb(run: Path, copy: Path) -> None:
    """Continue a copy of a run with twice its learning rate.

    Args:
        run: folder of a finished run.
        copy: folder of its copy, which may exist.

    Raises:
        DataError: the run is not finished, or its copy fails.
    """
    steps = read_finished(run)
    if steps is None:
        raise DataError(f"{run} is not finished: call `megacov sweep` again first.")
    if read_finished(copy) == steps + DISTURBED_STEPS:
        return
    if not copy.exists():
        part = copy.with_name(f"{copy.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(run, part)
        part.rename(copy)
    rate = 2 * load_config(run / "config.yaml").optimizer.lr
    changes = (f"run.steps={steps + DISTURBED_STEPS}", f"optimizer.lr={rate}")
    command = [sys.executable, "-m", "megacov", "resume", str(copy), *changes, "--allow", "optimizer.lr"]
    threads = {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | threads)
    if ended.returncode != 0:
        raise DataError(f"{copy} ended with {ended.returncode}: {ended.stderr[-500:]}")


def rows(courses: Sequence[Course], constants: Sequence[Course]) -> Iterator[list[str]]:
    """A row for each setting that the courses have, whose last halves count.

    Args:
        courses: of controlled runs.
        constants: of runs without a controller.

    Yields:
        The cells.
    """
    for setting in dict.fromkeys(course.setting for course in courses):
        seeds = [course for course in courses if course.setting == setting]
        target = seeds[0].target
        halves = [course.last(len(course.entropies) // 2) for course in seeds]
        entropies = np.stack([half.entropies for half in halves]) / target
        means = entropies.mean(1)
        windows = np.stack([moving_mean(seed) for seed in entropies])
        reward = float(np.mean([half.rewards for half in halves]))
        best, name = best_constant(constants, target)
        yield [
            seeds[0].acts_on,
            f"{target:g}",
            " ".join(f"{mean * target:.3f}" for mean in means),
            f"{means.mean() - 1:+.0%}",
            f"{np.abs(means - 1).max():.0%}",
            f"{(np.abs(entropies - 1) <= NEAR).mean():.0%}",
            f"{(np.abs(windows - 1) <= NEAR).mean():.0%}",
            f"{reward:.3f}",
            "none" if np.isnan(best) else f"{best:.3f} ({name.removeprefix('constant_')})",
            "-" if np.isnan(best) else f"{reward / best:.2f}",
        ]


HEADING = (
    "acts_on",
    "target",
    "mean entropy of each seed",
    "off on average",
    "farthest seed",
    "steps within 10 %",
    f"means of {WINDOW} steps within 10 %",
    "reward",
    "best constant there",
    "of it",
)


def main() -> None:
    """Continue the copies, print both tables, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    parser.add_argument("--figure", type=Path, help="picture to write, ending in .png")
    parser.add_argument("--at-once", type=int, default=1, help="copies that train at the same time")
    options = parser.parse_args()
    runs = sorted((options.sweep / "runs").iterdir())
    copies = [options.sweep / "disturbed" / run.name for run in runs]
    with ThreadPoolExecutor(options.at_once) as pool:
        for _ in pool.map(disturb, runs, copies):
            pass
    before, after = [read_course(run) for run in runs], [read_course(copy) for copy in copies]
    steps = len(before[0].entropies)
    for title, courses, length in (
        (f"Steps 1 to {steps}", before, steps),
        (f"The next {DISTURBED_STEPS}, at twice the learning rate", after, DISTURBED_STEPS),
    ):
        print(f"\n{title}\n")
        phase = [course.last(length) for course in courses]
        controlled, constants = ([each for each in phase if bool(each.acts_on) is is_on] for is_on in (True, False))
        for line in table(HEADING, list(rows(controlled, constants))):
            print(line)
    if options.figure:
        seeds: dict[tuple[str, float], list[NDArray[np.float64]]] = {}
        for course in after:
            if course.acts_on:
                seeds.setdefault((course.acts_on, course.target), []).append(course.entropies)
        write_figure(seeds, changed_at=steps, near=NEAR, path=options.figure)


if __name__ == "__main__":
    main()

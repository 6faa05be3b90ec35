"""The state of a run, for `megacov status`: read from its folder, and asked of SLURM if the run is a job."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from megacov.checkpoint.lock import Holder, find_holder
from megacov.checkpoint.manifest import MANIFEST_NAME
from megacov.checkpoint.store import CheckpointStore
from megacov.cli.status_state import State, tell_state
from megacov.config.yaml_text import read_yaml
from megacov.errors import CheckpointError, ConfigError, DataError, SubmitError
from megacov.launch.attempts import Attempts, read_attempts
from megacov.launch.jobs import SlurmJob, ask_job, choose_job, find_jobs, script_of
from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms_file import ALARMS_NAME, read_alarms
from megacov.monitor.headline_tags import ENTROPY_TAG, REWARD_TAG
from megacov.monitor.run_end import RunEnd, read_end
from megacov.monitor.status_file import STATUS_NAME, LoggedStep, read_logged_steps

RECENT = 10
"""Number of logged steps over which changes and usual times are computed."""


@dataclass(frozen=True)
class Progress:
    """The newest logged step. Times in seconds.

    usual_s: median time between two recent logged steps; None if there are fewer than two.
    usual_steps: median number of steps between two recent logged steps.
    longest_s: longest time between two recent logged steps.
    """

    step: int
    age_s: float
    usual_s: float | None
    usual_steps: int | None
    longest_s: float | None


@dataclass(frozen=True)
class Metric:
    """The newest value of a metric, and its change over `over` logged steps."""

    value: float
    change: float | None
    over: int


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint."""

    step: int
    age_s: float
    folder: Path


@dataclass(frozen=True)
class RunStatus:
    """Everything known about a run. None or empty if something is not known.

    end: how the process that held the run last has ended; None while it holds the run, or if it was killed.
    steps: number of steps that the run will have at its end.
    unread: why the logged steps are not known; empty if they are.
    alarms: all that the run has raised, by step; None if the run has left no record of them.
    damaged_alarms: lines of RUN/alarms.jsonl that cannot be read.
    restarts: restarts of the run's jobs, over the whole chain.
    logs: log folder of the newest attempt.
    jobs_waiting: number of further jobs of the run that wait.
    slurm: why SLURM has given no information.
    """

    run: Path
    name: str
    state: State
    end: RunEnd | None
    steps: int | None
    progress: Progress | None
    unread: str
    entropy: Metric | None
    reward: Metric | None
    alarms: tuple[Alarm, ...] | None
    damaged_alarms: int
    saved: Saved | None
    restarts: int
    logs: Path | None
    job: SlurmJob | None
    jobs_waiting: int
    slurm: str


class _Asked(NamedTuple):
    """SLURM's answer. `problem` says why there is no job; `is_certain` means that no job continues the run then."""

    job: SlurmJob | None = None
    waiting: int = 0
    problem: str = ""
    is_certain: bool = True


def read_status(run: Path, job: SlurmJob | None = None) -> RunStatus:
    """Look at a run. Changes nothing.

    Args:
        run: folder of the run, which does not exist yet for a job that has not begun.
        job: job of the run, if the user asked for one; None to look for one.

    Returns:
        Everything known about the run.

    Raises:
        DataError: there is no such run, or it cannot be read.
    """
    now = time.time()
    try:
        has_config, was_submitted = (run / "config.yaml").is_file(), script_of(run)[0].is_file()
        if not (has_config or was_submitted or any((run / "logs").glob("slurm_*"))):
            raise DataError(f"{run} is not a run: give the folder of one, such as runs/NAME, or the number of its job.")
        name, steps = _read_config(run / "config.yaml") if has_config else (run.name, None)
        holder = find_holder(run)
        attempts = read_attempts(run, since=holder.since if holder else 0.0)
        end = None if holder is None or holder.is_held else read_end(run, since=holder.since)
        saved = _find_saved(run, now)
        logged, unread = _read_logged(run, is_begun=saved is not None)
        alarms, damaged_alarms = read_alarms(run)
    except OSError as error:
        raise DataError(f"{error.filename or run} cannot be read: {error.strerror}.") from error
    asked = _Asked(job) if job else _ask(run, holder, attempts)
    done = max([saved.step if saved else 0, logged[-1].step if logged else 0])
    return RunStatus(
        run=run,
        name=name,
        state=tell_state(
            holder,
            asked.job,
            attempts,
            end_code=None if end is None else end.code,
            is_certain=asked.is_certain,
            is_done=steps is not None and done >= steps,
        ),
        end=end,
        steps=steps,
        progress=_progress(logged, now),
        unread=unread,
        entropy=_metric(logged, ENTROPY_TAG),
        reward=_metric(logged, REWARD_TAG),
        alarms=tuple(alarms) if (run / ALARMS_NAME).exists() else None,
        damaged_alarms=damaged_alarms,
        saved=saved,
        restarts=max(0, len(attempts.folders) - 1),
        logs=attempts.folders[-1] if attempts.folders else None,
        job=asked.job,
        jobs_waiting=asked.waiting,
        slurm=asked.problem,
    )


def _read_config(path: Path) -> tuple[str, int]:
    try:
        section: dict[str, Any] = read_yaml(path, source=str(path))["run"]
        return str(section["name"]), int(section["steps"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not hold run.name and run.steps: restore the file that `megacov train` wrote there."
        ) from error


def _read_logged(run: Path, *, is_begun: bool) -> tuple[tuple[LoggedStep, ...], str]:
    """The newest logged steps, or none and a sentence that says why they are not known."""
    try:
        logged = read_logged_steps(run)
    except DataError as error:
        return (), str(error)
    if logged is None and is_begun:
        return (), f"{run / STATUS_NAME} is missing; a run that trains writes it with its next logged step."
    return (logged or ())[-RECENT - 1 :], ""


def _find_saved(run: Path, now: float) -> Saved | None:
    try:
        candidates = CheckpointStore(run).find().candidates
    except CheckpointError as error:
        raise DataError(str(error)) from error
    for folder in candidates:
        if (folder / MANIFEST_NAME).is_file():
            age_s = now - (folder / MANIFEST_NAME).stat().st_mtime
            return Saved(int(folder.name.rpartition("_")[2]), max(0.0, age_s), folder)
    return None


def _progress(logged: Sequence[LoggedStep], now: float) -> Progress | None:
    if not logged:
        return None
    pairs = list(pairwise(logged))
    times = [after.time - before.time for before, after in pairs]
    return Progress(
        step=logged[-1].step,
        age_s=max(0.0, now - logged[-1].time),
        usual_s=statistics.median(times) if times else None,
        usual_steps=int(statistics.median(after.step - before.step for before, after in pairs)) if pairs else None,
        longest_s=max(times) if times else None,
    )


def _metric(logged: Sequence[LoggedStep], tag: str) -> Metric | None:
    values = [step.values[tag] for step in logged if tag in step.values]
    if not values:
        return None
    return Metric(values[-1], values[-1] - values[0] if len(values) > 1 else None, len(values) - 1)


def _ask(run: Path, holder: Holder | None, attempts: Attempts) -> _Asked:
    """Ask SLURM about a run that has, or had, a job."""
    inside = holder.slurm_job if holder is not None and holder.is_held else None
    if not (inside or attempts.folders or script_of(run)[0].is_file()):
        return _Asked()
    try:
        jobs = find_jobs(run)
        chosen = choose_job(jobs)
        asked = chosen.name if chosen else inside
        job = ask_job(asked) if asked else None
    except SubmitError as error:
        return _Asked(problem=str(error), is_certain=False)
    waiting = [each for each in jobs if each.state == "PENDING" and each != chosen]
    return _Asked(job, len(waiting), "" if job else "SLURM no longer knows a job of the run.")

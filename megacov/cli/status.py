"""megacov status: the state of a run now, from its folder and from SLURM."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacov.errors import DataError
from megacov.monitor.alarms_file import ALARMS_NAME

if TYPE_CHECKING:
    from megacov.cli.status_run import Metric, Progress, RunStatus
    from megacov.launch.jobs import SlurmJob

_JOB = re.compile(r"\d+(_\d+)?")


def status(
    run: Annotated[str, typer.Argument(metavar="RUN|JOBID", help="Folder of a run, or a job as in 123 or 123_4.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a run is doing: state, step, checkpoint, restarts, job, entropy and reward. Needs no torch."""
    from megacov.cli.status_run import read_status
    from megacov.launch.jobs import ask_job, run_of_job

    if _JOB.fullmatch(run) and not Path(run).is_dir():
        job = ask_job(run)
        if job is None:
            raise DataError(f"SLURM does not know job {run}, or no longer does: give the folder of its run.")
        found = read_status(run_of_job(job), job)
    else:
        found = read_status(Path(run))
    if as_json:
        print(json.dumps(_finite(asdict(found)), default=str, indent=1))
    else:
        for name, text in render(found):
            print(f"{name:<11} {text}")


def render(found: RunStatus) -> Iterator[tuple[str, str]]:
    """Yield a name and a sentence, for people, for each thing that is known."""
    yield "run", f"{found.name}, {found.run}"
    yield "state", found.state.sentence
    if found.end is not None and found.end.reason and found.state.exit_code:
        yield "why", found.end.reason
    yield "step", f"not known: {found.unread}" if found.unread else _progress(found.progress, found.steps)
    if found.state.word == "training" and found.progress is not None and _is_silent(found.progress):
        longest = _span(found.progress.longest_s or 0.0)
        yield (
            "",
            f"silent for {_span(found.progress.age_s)}, longer than any of the last steps took (at most {longest})",
        )
    if found.entropy is not None:
        yield "entropy", _metric(found.entropy, unit=" nats")
    if found.reward is not None:
        yield "reward", _metric(found.reward)
    yield from _alarms(found)
    if found.saved is not None:
        yield "checkpoint", f"step {found.saved.step}, {_span(found.saved.age_s)} ago, {found.saved.folder}"
    else:
        yield "checkpoint", "none"
    if found.logs is not None:
        yield "restarts", f"{found.restarts}; logs of the newest attempt in {found.logs}"
    if found.job is not None:
        more = f"; {found.jobs_waiting} more of the run wait" if found.jobs_waiting else ""
        yield "job", f"{_job(found.job)}{more}"
    if found.slurm:
        yield "job", found.slurm


def _progress(progress: Progress | None, steps: int | None) -> str:
    of = "" if steps is None else f" of {steps}"
    if progress is None:
        return f"none{of} yet"
    usual = ""
    if progress.usual_s is not None and progress.usual_steps is not None:
        each = "one" if progress.usual_steps == 1 else f"{progress.usual_steps} steps"
        usual = f"; usually {each} in {_span(progress.usual_s)}"
    return f"{progress.step}{of}, recorded {_span(progress.age_s)} ago{usual}"


def _alarms(found: RunStatus) -> Iterator[tuple[str, str]]:
    if found.alarms is None:
        if found.progress is not None or found.saved is not None:
            yield "alarms", f"not known: {found.run / ALARMS_NAME} is missing; `megacov report` finds them again"
        return
    for alarm in found.alarms:
        if alarm.cleared is None:
            yield "alarm", f"{alarm.kind} since step {alarm.step}: {alarm.seen}; {alarm.meaning}; {alarm.knob}"
    over = [f"{alarm.kind} at steps {alarm.step} to {alarm.cleared}" for alarm in found.alarms if alarm.cleared]
    if over:
        yield "past alarms", ", ".join(over)
    if found.damaged_alarms:
        yield "", f"{_count(found.damaged_alarms, 'line')} of {found.run / ALARMS_NAME} cannot be read"


def _is_silent(progress: Progress) -> bool:
    return progress.longest_s is not None and progress.age_s > progress.longest_s


def _metric(metric: Metric, *, unit: str = "") -> str:
    change = "" if metric.change is None else f", {metric.change:+.4f} over {_count(metric.over, 'logged step')}"
    return f"{metric.value:.4f}{unit}{change}"


def _job(job: SlurmJob) -> str:
    where = f" on {job.nodes}" if job.nodes else f", for {_count(job.num_nodes, 'node')}"
    left = f", {_span(job.left_s)} left" if job.left_s is not None else ""
    code = f" with exit code {job.exit_code}" if job.is_over else ""
    reason = f", because of {job.reason}" if job.reason and not job.is_over else ""
    return f"{job.name} is {job.state}{code}{where}{left}{reason}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _span(seconds: float) -> str:
    """A time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def _finite(value: Any) -> Any:
    """The same value, with null for each number that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

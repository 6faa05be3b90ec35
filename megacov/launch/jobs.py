"""The jobs of a run, as SLURM describes them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from megacov.errors import DataError, SubmitError
from megacov.launch.slurm import ask_slurm, complaint, read_count, read_seconds

_OVER = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED")
) | {"TIMEOUT"}
_WAITING = frozenset(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"))
_SEED = re.compile(r"(.+)_seed(\d+)")
# Every job script of ours runs this module.
_MARK = "megacov.launch.node_ranks"


@dataclass(frozen=True)
class SlurmJob:
    """A job.

    job_id: number of the job; each task of an array has its own.
    name: name that users give, such as 123_4 for a task of an array.
    reason: why the job waits; empty if SLURM gives no reason.
    nodes: nodes of the job, in SLURM's notation; empty while the job waits.
    left_s: seconds until the time limit; None without a limit, and while the job does not run.
    exit_code: 128 plus the signal if a signal ended the job.
    command: the script and its arguments.
    """

    job_id: str
    name: str
    state: str
    reason: str
    nodes: str
    num_nodes: int
    restarts: int
    left_s: int | None
    exit_code: int
    command: tuple[str, ...]

    @property
    def is_over(self) -> bool:
        """The job has ended, and SLURM will not run it again."""
        return self.state in _OVER

    @property
    def is_waiting(self) -> bool:
        """The job has not started yet, or not restarted yet."""
        return self.state in _WAITING

    @property
    def is_later_of_chain(self) -> bool:
        """The job only continues what an earlier job of its chain began."""
        return self.command[1:2] not in ((), ("0",))


class Listed(NamedTuple):
    """A job in a list of many; `name` is the one that users give."""

    name: str
    state: str

    @property
    def is_over(self) -> bool:
        """The job has ended, and SLURM will not run it again."""
        return self.state in _OVER


def ask_job(name: str) -> SlurmJob | None:
    """Ask SLURM for a job.

    Args:
        name: number of the job, or ARRAY_TASK.

    Returns:
        The job; None if SLURM does not know it, or no longer does.

    Raises:
        SubmitError: SLURM does not answer.
        DataError: the job is an array, and so stands for several runs.
    """
    answer = ask_slurm("scontrol", "show", "job", "--oneliner", name)
    if answer.returncode:
        if "Invalid job id" in answer.stderr or "not found" in answer.stdout:
            return None
        raise SubmitError(complaint(answer))
    return parse_job(answer.stdout, name)


def parse_job(text: str, name: str) -> SlurmJob | None:
    """Read the output of `scontrol show job --oneliner`.

    Args:
        text: output, with a line for each component of a heterogeneous job, or each task of an array.
        name: name by which the job was asked for.

    Returns:
        The job, with its components taken together; None if the output has no job.

    Raises:
        DataError: the job is an array, and so stands for several runs.
        SubmitError: a number in the output is none.
    """
    lines = [dict(word.partition("=")[::2] for word in line.split(" ") if "=" in word) for line in text.splitlines()]
    lines = [line for line in lines if "JobId" in line and "JobState" in line]
    if not lines:
        return None
    tasks = [line["ArrayTaskId"] for line in lines if "ArrayTaskId" in line]
    if len(tasks) > 1 or any(not task.isdecimal() for task in tasks):
        one = f"{name}_{re.split('[^0-9]', min(tasks))[0]}"
        raise DataError(f"job {name} is an array, with a run for each of its tasks: name one, as in {one}.")
    components = [line for line in lines if line.get("HetJobId", name) == lines[0].get("HetJobId", name)]
    first = components[0]
    code, _, signal = first.get("ExitCode", "0:0").partition(":")
    state = first["JobState"]
    limit, spent = read_seconds(first.get("TimeLimit", "")), read_seconds(first.get("RunTime", ""))
    is_running = state not in _OVER and state not in _WAITING
    return SlurmJob(
        job_id=first["JobId"],
        name=f"{first.get('ArrayJobId', name)}_{tasks[0]}" if tasks else first["JobId"],
        state=state,
        reason=_known(first.get("Reason", "")),
        nodes=",".join(nodes for line in components if (nodes := _known(line.get("NodeList", "")))),
        num_nodes=sum(read_count(line.get("NumNodes", "0").partition("-")[0]) for line in components),
        restarts=read_count(first.get("Restarts", "0")),
        left_s=max(0, limit - spent) if is_running and limit is not None and spent is not None else None,
        exit_code=128 + read_count(signal) if signal not in ("", "0") else read_count(code),
        command=_command(text.splitlines()[0]),
    )


def _known(value: str) -> str:
    return "" if value in ("None", "(null)", "N/A") else value


def _command(line: str) -> tuple[str, ...]:
    found = re.search(r" Command=(.*?) WorkDir=", line)
    return tuple(found[1].split()) if found else ()


def script_of(run: Path) -> tuple[Path, str]:
    """Find the job script of a run, and the ending of its jobs' names.

    Args:
        run: folder of the run, which may not exist yet.

    Returns:
        The script, which may not exist, and "_SEED" for a run of an array, otherwise an empty text.
    """
    run = run.absolute()
    script, seed = Path(f"{run}.sbatch"), _SEED.fullmatch(str(run))
    if seed is not None and not script.exists():
        return Path(f"{seed[1]}.sbatch"), f"_{seed[2]}"
    return script, ""


def find_jobs(run: Path) -> tuple[Listed, ...]:
    """Ask for all jobs of a run that SLURM still knows.

    Args:
        run: folder of the run.

    Returns:
        The jobs, in order of their numbers. SLURM forgets a job some minutes after its end.

    Raises:
        SubmitError: SLURM does not answer.
    """
    script, task = script_of(run)
    if not script.exists():
        return ()
    return parse_list(list_jobs(script.stat().st_uid), script, task)


def list_jobs(user: int) -> str:
    """Ask for all jobs of a user that SLURM still knows.

    Args:
        user: number of the user.

    Returns:
        Lines for `parse_list`.

    Raises:
        SubmitError: SLURM does not answer.
    """
    answer = ask_slurm("squeue", "--states=all", "--array", "--noheader", "--format=%i %T %o", f"--user={user}")
    if answer.returncode:
        raise SubmitError(complaint(answer))
    return answer.stdout


def parse_list(text: str, script: Path, task: str) -> tuple[Listed, ...]:
    """Pick the jobs of a run from a list of many.

    Args:
        text: lines of name, state and command, one for each job.
        script: job script of the run.
        task: ending of the jobs' names, as `script_of` returns it.

    Returns:
        The jobs, in order of their numbers.
    """
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 3 or Path(words[2]).name != script.name or not _is_same(Path(words[2]), script):
            continue
        # The first component of a heterogeneous job stands for all.
        name, _, component = words[0].partition("+")
        number, _, of_array = name.partition("_")
        if component in ("", "0") and of_array == task[1:] and re.fullmatch("[0-9]{1,18}", number):
            found.append((int(number), Listed(name, words[1])))
    return tuple(job for _, job in sorted(found))


def _is_same(path: Path, other: Path) -> bool:
    # No file has a NUL in its name, and realpath raises for it.
    return path == other or ("\0" not in str(path) and os.path.realpath(path) == os.path.realpath(other))


def choose_job(jobs: Sequence[Listed]) -> Listed | None:
    """Choose the job that says most about a run.

    Args:
        jobs: all jobs of the run, in order of their numbers.

    Returns:
        The job that runs, otherwise the first that waits, otherwise the last that has ended; None without jobs.
    """
    alive = [job for job in jobs if job.state not in _OVER]
    running = [job for job in alive if job.state not in _WAITING]
    return next(iter([*running, *alive, *reversed(jobs)]), None)


def run_of_job(job: SlurmJob) -> Path:
    """Find the run folder of a job.

    Args:
        job: a job as SLURM describes it.

    Returns:
        The folder, which may not exist yet.

    Raises:
        DataError: the job was not submitted by `megacov launch`.
    """
    script = Path(job.command[0]) if job.command else Path("(none)")
    try:
        is_ours = script.suffix == ".sbatch" and _MARK in script.read_text(encoding="utf-8", errors="replace")
    except OSError:
        is_ours = script.suffix == ".sbatch" and script.with_suffix("").is_dir()
    if not is_ours:
        raise DataError(f"job {job.name} was not submitted by `megacov launch`: its script is {script}.")
    run, task = str(script.with_suffix("")), job.name.partition("_")[2]
    return Path(f"{run}_seed{task}" if task else run)

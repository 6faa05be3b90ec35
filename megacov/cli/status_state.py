"""The state of a run in one word and one sentence, derived from its lock, SLURM, and what its processes have noted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megacov.checkpoint.lock import LOCK_NAME, Holder
from megacov.errors import AlarmError, LeaveRequested, exit_meaning
from megacov.launch.attempts import Attempts
from megacov.launch.jobs import SlurmJob

Word = Literal["training", "starting", "waiting", "leaving", "ended", "failed", "stopped", "not started", "unknown"]


@dataclass(frozen=True)
class State:
    """A word for programs, a sentence for people, and the exit code if the run has ended or is about to."""

    word: Word
    sentence: str
    exit_code: int | None = None


def tell_state(
    holder: Holder | None,
    job: SlurmJob | None,
    attempts: Attempts,
    *,
    end_code: int | None = None,
    is_certain: bool,
    is_done: bool,
) -> State:
    """Derive the state of a run from its sources, the most reliable first: lock, SLURM, notes of its jobs, steps.

    Args:
        holder: process that holds the run or held it last.
        job: job of the run that says most about it.
        attempts: attempts of the run's jobs.
        end_code: exit code that the last holder has written down; None if it wrote none.
        is_certain: whether `job` None means that there is no job.
        is_done: whether all steps are logged or saved.

    Returns:
        The state.
    """
    if holder is not None and holder.is_held:
        is_of_newest = attempts.newest.startswith(f"slurm_{holder.slurm_job}_")
        leaving = _leaving(attempts) if is_of_newest else None
        return leaving or State("training", f"training: {holder.description}")
    if job is not None and job.is_waiting and not (job.is_later_of_chain and attempts.ended is not None):
        reason = f" ({job.reason})" if job.reason else ""
        return State("waiting", f"{'requeued, and ' if job.restarts else ''}waiting in the queue{reason}")
    if job is not None and not job.is_waiting and not job.is_over:
        return _running(holder, job, attempts)
    return _over(holder, job, attempts, end_code=end_code, is_certain=is_certain, is_done=is_done)


def _leaving(attempts: Attempts) -> State | None:
    code = attempts.last_code if attempts.ended is None else attempts.ended
    return None if code is None else State("leaving", f"leaving with code {code}: {exit_meaning(code)}", code)


def _running(holder: Holder | None, job: SlurmJob, attempts: Attempts) -> State:
    """State of a job that runs while the lock looks free: not every file system shows locks of other nodes."""
    is_begun = attempts.newest == f"slurm_{job.job_id}_{job.restarts}"
    if is_begun and (leaving := _leaving(attempts)):
        return leaving
    if job.state == "COMPLETING":
        return State("leaving", "leaving: its job is completing")
    is_taken = holder is not None and holder.slurm_job == job.job_id and holder.since >= (attempts.began or 0.0)
    if holder is not None and is_begun and is_taken:
        return State(
            "training", f"training: {holder.description}, according to SLURM: the lock cannot be seen from here"
        )
    if job.state == "RUNNING":
        return State("starting", "starting: its job runs, but no process has locked the run yet")
    return State("starting", f"starting: its job is {job.state}")


def _over(
    holder: Holder | None,
    job: SlurmJob | None,
    attempts: Attempts,
    *,
    end_code: int | None,
    is_certain: bool,
    is_done: bool,
) -> State:
    """State of a run that, as far as can be seen, no process holds and no job continues."""
    known = (attempts.ended, attempts.last_code, end_code)  # the launcher of a job knows the codes of all ranks
    code = next((each for each in known if each is not None), None)
    if code == 0 or (code is None and is_done):
        return State("ended", "ended normally", 0)
    if code is not None:
        word: Word = "stopped" if code in (LeaveRequested.exit_code, AlarmError.exit_code) else "failed"
        return State(word, f"ended with code {code}: {exit_meaning(code)}", code)
    if job is not None:
        why = f" with code {job.exit_code} ({exit_meaning(job.exit_code)})" if job.exit_code else ""
        return State(
            "failed" if job.state == "FAILED" else "stopped", f"its job is {job.state}{why}", job.exit_code or None
        )
    if not is_certain:
        return State("unknown", "not known: no process holds the run here, and SLURM has not answered")
    if holder is None:
        return State("not started", "not started")
    if holder.is_held is None:
        return State(
            "unknown", f"not known: {LOCK_NAME} cannot be locked here; the last holder was {holder.description}"
        )
    return State("stopped", f"stopped: {holder.description} held the run last, and did not finish it")

"""Runs of a sweep as SLURM jobs: an array for each setting, with a task for each seed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from megacov.cli.launch import prepare_job, submit_job
from megacov.errors import ConfigError, DataError, exit_meaning
from megacov.launch.jobs import Listed, choose_job, list_jobs, parse_list, script_of
from megacov.launch.site import Site
from megacov.launch.slurm import ask_slurm
from megacov.monitor.run_end import read_end
from megacov.sweep.folder import Outcome, SweepFolder, is_finished
from megacov.sweep.setting import Setting, SweepRun

# SLURM's answer is shared by all runs for so long.
_ANSWER_S = 5.0
# The end of a job may be known to SLURM before other machines see its files.
_FILES_S = 2.0


class SlurmPlace:
    """Submits runs, and follows their jobs, which need no sweep: they save, are requeued and resume by themselves."""

    begins = "is with SLURM"

    def __init__(self, folder: SweepFolder, site: Site) -> None:
        """Submit nothing yet.

        Args:
            folder: folder of the sweep.
            site: settings of the cluster.
        """
        self._folder, self._site = folder, site
        self._answer, self._answered_at = "", -_ANSWER_S
        self._has_looked_deep = False
        self._started: dict[str, float] = {}

    def start(self, runs: Sequence[SweepRun]) -> None:
        """Submit the runs that no earlier call has submitted, those of one setting as one array.

        Args:
            runs: runs that are not over.

        Raises:
            MegacovError: a run cannot work, or SLURM does not take it.
        """
        due: dict[str, list[SweepRun]] = {}
        for run in runs:
            self._started[run.name] = time.time()
            if self._folder.job_of(run).exists():
                continue
            job = self._job(run)
            if job is not None and job.name != self._failed_job(run):
                self._folder.keep_job(run, job.name)  # an earlier call was killed before it could
            else:
                due.setdefault(run.setting.name, []).append(run)
        for of_setting in due.values():
            self._submit(of_setting[0].setting, of_setting)

    def poll(self, run: SweepRun) -> Outcome | None:
        """Look how a run ended.

        Args:
            run: a run that was started.

        Returns:
            Its end; None while a job of it waits or runs.

        Raises:
            SubmitError: SLURM does not answer.
        """
        job = self._job(run)
        seconds = time.time() - self._started[run.name]
        if is_finished(run):
            return Outcome("done", seconds=seconds)
        if job is not None and not job.is_over:
            return None
        time.sleep(_FILES_S)
        self._answered_at = -_ANSWER_S
        job = self._job(run)
        if is_finished(run):
            return Outcome("done", seconds=seconds)
        if job is not None and not job.is_over:
            return None
        return self._failure(run, job, seconds)

    def stop(self, run: SweepRun) -> float:
        """Cancel the job of a run; returns the seconds since this call has followed it."""
        job = self._job(run)
        if job is not None and not job.is_over:
            ask_slurm("scancel", job.name)
        return time.time() - self._started[run.name]

    def leave(self, is_impatient: Callable[[], bool]) -> None:
        """Leave all jobs as they are."""

    def _submit(self, setting: Setting, runs: Sequence[SweepRun]) -> None:
        try:
            prepared, job = prepare_job(
                setting.config,
                self._folder.config_of(setting),
                [],
                self._site,
                num_seeds=len(runs),
                is_deep=not self._has_looked_deep,
            )
        except ConfigError as error:
            raise ConfigError(f"setting {setting.name}: {error}") from error
        self._has_looked_deep = True
        for run in runs:
            # Left by an earlier job of a run that is tried again.
            with suppress(FileNotFoundError):
                (run.directory / "logs" / "ended").unlink()
        (job_id,) = submit_job(prepared, job, chain=1, seeds=[run.seed for run in runs])
        for run in runs:
            self._folder.keep_job(run, f"{job_id}_{run.seed}")

    def _failed_job(self, run: SweepRun) -> str | None:
        path = self._folder.failed_job_of(run)
        try:
            return path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error}): remove it.") from error

    def _job(self, run: SweepRun) -> Listed | None:
        """The newest job of a run, as SLURM knows it now or knew it a moment ago."""
        script, _ = script_of(run.directory)
        if not script.exists():
            return None
        if time.monotonic() > self._answered_at + _ANSWER_S:
            self._answer, self._answered_at = list_jobs(os.getuid()), time.monotonic()
        return choose_job(parse_list(self._answer, script, f"_{run.seed}"))

    def _failure(self, run: SweepRun, job: Listed | None, seconds: float) -> Outcome:
        end = read_end(run.directory, since=0.0)
        with suppress(OSError, ValueError):
            code = int((run.directory / "logs" / "ended").read_text(encoding="utf-8"))
            reason = end.reason if end is not None and end.code == code and end.reason else exit_meaning(code)
            return Outcome("failed", code, reason, seconds)
        state = f"its job {job.name} is {job.state}" if job else "SLURM no longer knows its job"
        return Outcome("failed", 1, f"{state}, and the run has not come to its end", seconds)

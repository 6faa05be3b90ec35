"""The folder of a sweep: its settings, the runs, and a file for each run that is over.

That file alone decides that a run is over. It is written whole, once, after the run has ended, so a sweep that is
killed at any moment and started again neither repeats a run nor loses one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from megacov.checkpoint.finished import read_finished
from megacov.checkpoint.lock import RunLock
from megacov.config import dump_config, load_config
from megacov.errors import DataError
from megacov.files import write_atomically
from megacov.json_text import JsonError, read_json
from megacov.monitor.run_end import read_end
from megacov.sweep.setting import Setting, SweepRun

Kind = Literal["done", "failed", "pruned"]


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    code: exit code of the run; 0 for one that was pruned.
    reason: why it failed; empty otherwise.
    seconds: how long this sweep has seen it run, over all starts.
    """

    kind: Kind
    code: int = 0
    reason: str = ""
    seconds: float = 0.0


class SweepFolder:
    """Reads and writes the folder of a sweep. One process at a time holds it."""

    def __init__(self, path: Path) -> None:
        """Touch nothing yet."""
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and hold its lock.

        Raises:
            DataError: another process holds it, it cannot be written, or it holds something else than a sweep.
        """
        with self._disk():
            is_run = (self.path / "config.yaml").exists()
        if is_run:
            raise DataError(f"directory is {self.path}, which holds a run and no sweep: choose another directory.")
        with RunLock(self.path, setting="directory"):
            with self._disk():
                for name in ("settings", "runs", "logs", "outcomes", "jobs"):
                    (self.path / name).mkdir(exist_ok=True)
            yield

    def config_of(self, setting: Setting) -> Path:
        """File with the whole configuration of a setting."""
        return self.path / "settings" / f"{setting.name}.yaml"

    def has_setting(self, name: str) -> bool:
        """Whether a setting of that name was written."""
        return (self.path / "settings" / f"{name}.yaml").exists()

    def log_of(self, run: SweepRun) -> Path:
        """File that receives the output of a run on this machine."""
        return self.path / "logs" / f"{run.name}.log"

    def job_of(self, run: SweepRun) -> Path:
        """File with the SLURM job that a run was submitted in."""
        return self.path / "jobs" / run.name

    def failed_job_of(self, run: SweepRun) -> Path:
        """File with the last job of a run that failed and is to be started again: SLURM still lists it for a while."""
        return self.path / "jobs" / f"{run.name}.failed"

    def keep_job(self, run: SweepRun, name: str) -> None:
        """Note the job of a run; raises DataError if the disk refuses it."""
        with self._disk():
            write_atomically(self.job_of(run), f"{name}\n", is_synced=True)

    def keep_setting(self, setting: Setting) -> None:
        """Write the configuration of a setting, or compare it with what an earlier call has written.

        Args:
            setting: the setting.

        Raises:
            DataError: the file cannot be written, or the setting of that name was another one.
        """
        path = self.config_of(setting)
        if not path.exists():
            with self._disk():
                write_atomically(path, dump_config(setting.config), is_synced=True)
            return
        before, now = load_config(path).model_dump(mode="json"), setting.config.model_dump(mode="json")
        for section, values in now.items():
            for key, value in values.items():
                if before[section][key] != value:
                    raise DataError(
                        f"{path} has {section}.{key} {json.dumps(before[section][key])}, and the sweep now has "
                        f"{json.dumps(value)} for the same setting: restore it, or choose another directory."
                    )

    def read_outcome(self, run: SweepRun) -> Outcome | None:
        """Read how a run ended. A run that ended just before the sweep was killed counts as done.

        Args:
            run: the run.

        Returns:
            Its end; None if it is not over.

        Raises:
            DataError: the file is damaged.
        """
        path = self._outcome_path(run)
        try:
            content = read_json(path)
        except FileNotFoundError:
            return Outcome("done") if is_finished(run) else None
        except (OSError, JsonError) as error:
            raise DataError(f"{path} cannot be read ({error}): remove it, and the run is looked at anew.") from error
        match content:
            case {
                "kind": "done" | "failed" | "pruned" as kind,
                "code": int(code),
                "reason": str(reason),
                "seconds": int(seconds) | float(seconds),
            }:
                return Outcome(kind, code, reason, float(seconds))
        raise DataError(f"{path} is not what a sweep writes: remove it, and the run is looked at anew.")

    def write_outcome(self, run: SweepRun, outcome: Outcome) -> None:
        """Record that a run is over; raises DataError if the disk refuses it."""
        with self._disk():
            text = json.dumps({**asdict(outcome), "ended": time.time()})
            write_atomically(self._outcome_path(run), text + "\n", is_synced=True)

    def forget_failure(self, run: SweepRun) -> None:
        """Let a failed run be started again."""
        outcome = self.read_outcome(run)
        if outcome is not None and outcome.kind == "failed":
            with self._disk():
                with suppress(FileNotFoundError):
                    self.job_of(run).replace(self.failed_job_of(run))
                self._outcome_path(run).unlink()

    def write(self, name: str, text: str) -> Path:
        """Write a file of results; raises DataError if the disk refuses it."""
        with self._disk():
            write_atomically(self.path / name, text)
        return self.path / name

    def _outcome_path(self, run: SweepRun) -> Path:
        return self.path / "outcomes" / f"{run.name}.json"

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{error.filename or self.path} cannot be written: {error.strerror}.") from error


def is_finished(run: SweepRun) -> bool:
    """Whether a run's own folder says that it came to its end; without checkpoints, only the exit code says so."""
    if read_finished(run.directory) == run.setting.config.run.steps:
        return True
    end = read_end(run.directory, since=0.0)
    return end is not None and end.code == 0


def has_checkpoint(run: SweepRun) -> bool:
    """Whether `megacov resume` can continue a run."""
    folders = ("step_*", "tmp_replaced_*")
    return any(any(run.directory.glob(f"checkpoints/{each}/MANIFEST.json")) for each in folders)

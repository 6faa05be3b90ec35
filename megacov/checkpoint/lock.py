"""One process at a time writes to a run: an flock, which the kernel takes back from a process however it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from megacov.errors import DataError

LOCK_NAME = "run.lock"

# Whoever looks at the lock has it for an instant.
_LOOK_S = 0.5
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Holder:
    """The process that has taken a run last.

    description: what it wrote about itself.
    slurm_job: in which it ran, if it was in one.
    since: when it took the run, in seconds since the epoch.
    is_held: whether it still has the run; None where files cannot be locked.
    """

    description: str
    slurm_job: str | None
    since: float
    is_held: bool | None


class RunLock:
    """Holds a run folder while the context lasts.

    The lock is on the open file: it moves with the folder when that is renamed, and a folder made anew under the old
    name needs a lock of its own. The file stays behind unlocked, for a file that is removed could be locked twice.

    Python opens files close-on-exec, and forks let go of it here: a server or a worker that outlived this process would
    otherwise keep the run locked.
    """

    def __init__(self, run_folder: Path) -> None:
        """Nothing is touched yet.

        Args:
            run_folder: of the run; it is made if it is not there.
        """
        self._folder = run_folder
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Take the lock.

        Returns:
            This.

        Raises:
            DataError: another process holds it, or the folder cannot be written.
        """
        path = self._folder / LOCK_NAME
        try:
            while self._descriptor is None:
                self._descriptor = _locked(path)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(_this_process()).encode(), 0)
        except OSError as error:
            self._forget()
            raise DataError(f"{path} cannot be written: {error.strerror}.") from error
        os.register_at_fork(after_in_child=self._forget)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give it back."""
        if self._descriptor is not None:
            # Closing alone would leave it with a child that was just forked and has not let go yet.
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._forget()

    def _forget(self) -> None:
        if self._descriptor is not None:
            # In a fork, LOCK_UN would take the lock from the parent too.
            os.close(self._descriptor)
            self._descriptor = None


def _locked(path: Path) -> int | None:
    """A descriptor of the locked file; None if the folder was moved away in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            print(
                f"megacov: {path} cannot be locked ({error.strerror}): see to it that no other run writes there.",
                flush=True,
            )
            return descriptor
        holder = os.pread(descriptor, 4096, 0)
        os.close(descriptor)
        if error.errno in _TAKEN:
            raise DataError(
                f"{path.parent} is in use by {_describe(holder)}: "
                "wait for it, stop it, or choose another run.directory."
            ) from error
        raise
    if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
        return descriptor
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> None:
    deadline = time.monotonic() + _LOOK_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def find_holder(run_folder: Path) -> Holder | None:
    """Look who has a run. Changes nothing.

    Args:
        run_folder: of the run.

    Returns:
        The process that has the run, or had it last; None if none ever had.

    Raises:
        DataError: the lock cannot be read.
    """
    path = run_folder / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        text, since = os.pread(descriptor, 4096, 0), os.fstat(descriptor).st_mtime
        return Holder(_describe(text), _slurm_job(text), since, _is_held(descriptor))
    finally:
        os.close(descriptor)


def _is_held(descriptor: int) -> bool | None:
    try:
        # Shared: those who look do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in _TAKEN else None
    return False


def _slurm_job(text: bytes) -> str | None:
    try:
        job = json.loads(text)["slurm_job"]
    except (ValueError, KeyError, TypeError):
        return None
    return job if isinstance(job, str) else None


def _this_process() -> dict[str, object]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _describe(text: bytes) -> str:
    """Who holds it, from what they wrote, which may be half-written or of another version."""
    try:
        holder = json.loads(text)
        job = f", SLURM job {holder['slurm_job']}," if holder["slurm_job"] else ""
        return f"process {holder['pid']} on {holder['host']}{job} since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"

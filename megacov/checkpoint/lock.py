"""A lock, so that one process at a time writes to a run: an flock, which the kernel releases however a process ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from megacov.errors import DataError
from megacov.json_text import parse_json

LOCK_NAME = "run.lock"

# A process that only looks at the lock holds it for an instant; a process that wants it waits this long.
_LOOK_S = 0.5
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Holder:
    """The process that was the last to lock a run.

    description: host, process id, SLURM job and start of the process, in one phrase.
    slurm_job: SLURM job of the process; None outside of jobs.
    since: time at which the process locked the run, in seconds since the epoch.
    is_held: whether the process still holds the lock; None if files cannot be locked here.
    """

    description: str
    slurm_job: str | None
    since: float
    is_held: bool | None


class RunLock:
    """Holds the lock of a run folder while the context lasts.

    The lock is on the open file: it moves with the folder if that is renamed, and a new folder under the old name needs
    a lock of its own. The file stays behind unlocked, because a file that is removed could be locked twice.

    Python opens files close-on-exec, and forks close the file here: otherwise a server or a worker that outlives this
    process would keep the run locked.
    """

    def __init__(self, run_folder: Path, *, setting: str = "run.directory") -> None:
        """Nothing is touched yet. `__enter__` makes the folder if it does not exist.

        Args:
            run_folder: folder of the run, or another one that a run needs for itself.
            setting: setting that names the folder.
        """
        self._folder, self._setting = run_folder, setting
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Take the lock.

        Returns:
            This lock.

        Raises:
            DataError: another process holds the lock, or the folder cannot be written.
        """
        path = self._folder / LOCK_NAME
        try:
            while self._descriptor is None:
                self._descriptor = _locked(path, self._setting)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(_this_process()).encode(), 0)
        except OSError as error:
            self._forget()
            raise DataError(f"{path} cannot be written: {error.strerror}.") from error
        os.register_at_fork(after_in_child=self._forget)
        return self

    def find_folder(self) -> Path | None:
        """Find the locked folder, which may have been renamed since.

        Returns:
            Its path, as it was given if that still holds; None if the folder was deleted, or moved elsewhere on another
            machine.
        """
        if self._descriptor is None:
            return None
        own = os.fstat(self._descriptor)
        for folder in self._possible_folders(self._descriptor):
            with suppress(OSError):
                if os.path.samestat(own, (folder / LOCK_NAME).stat()):
                    return folder
        return None

    def _possible_folders(self, descriptor: int) -> Iterator[Path]:
        yield self._folder
        with suppress(OSError):
            yield Path(os.readlink(f"/proc/self/fd/{descriptor}")).parent
        # The kernel does not see a rename that another machine made on a network file system.
        with suppress(OSError):
            yield from sorted(self._folder.absolute().parent.iterdir())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            # Closing alone would leave the lock with a child that was just forked and has not closed the file yet.
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._forget()

    def _forget(self) -> None:
        if self._descriptor is not None:
            # In a forked child, LOCK_UN would also take the lock from the parent.
            os.close(self._descriptor)
            self._descriptor = None


def _locked(path: Path, setting: str) -> int | None:
    """A descriptor of the locked file; None if the folder was moved away in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            print(
                f"megacov: {path} cannot be locked ({error.strerror}): make sure that no other run writes there.",
                flush=True,
            )
            return descriptor
        holder = os.pread(descriptor, 4096, 0)
        os.close(descriptor)
        if error.errno in _TAKEN:
            raise DataError(
                f"{path.parent} is in use by {_describe(holder)}: wait for it, stop it, or choose another {setting}."
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
    """Find the process that holds a run. Changes nothing.

    Args:
        run_folder: folder of the run.

    Returns:
        The process that holds the run or held it last; None if no process ever did.

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
        # A shared lock, so that processes that only look do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in _TAKEN else None
    return False


def _slurm_job(text: bytes) -> str | None:
    try:
        job = parse_json(text)["slurm_job"]
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
    """The holder as a phrase, from the text in the lock, which may be half-written or from another version."""
    try:
        holder = parse_json(text)
        job = f", SLURM job {holder['slurm_job']}," if holder["slurm_job"] else ""
        return f"process {holder['pid']} on {holder['host']}{job} since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"

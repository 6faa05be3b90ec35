"""Errors of the disk in one sentence, and writes that wait until the data is on the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megacov.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors(path: Path, action: str) -> Iterator[None]:
    """Inside, an OSError becomes a CheckpointError that names the path and the reason.

    Args:
        path: file or folder to name if the operating system names none.
        action: "written", "read" or "removed".

    Raises:
        CheckpointError: an OSError was raised inside.
    """
    try:
        yield
    except OSError as error:
        # If a rename fails, its target is what is full or forbidden.
        culprit = error.filename2 or error.filename or path
        raise CheckpointError(f"{culprit} cannot be {action}: {error.strerror or error}{_advice(error)}.") from error


def _advice(error: OSError) -> str:
    return "; free space, or raise the quota" if error.errno in _FULL else ""


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Wait until a folder's list of names is on the disk: a file is safe only once its name is."""
    try:
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        # Some network file systems have no fsync for folders; they write names through at once.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, text: str) -> None:
    """Write a small file and wait until its bytes are on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())

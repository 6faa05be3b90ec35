"""Errors of the disk in one sentence."""

from __future__ import annotations

import errno
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

"""Small files that are replaced whole: a process that is killed leaves the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def write_atomically(path: Path, text: str, *, is_synced: bool = False) -> None:
    """Write a small file under another name in its folder, then rename it.

    One process at a time may write a path. If writing fails, the old content stays, and nothing of the new.

    Args:
        path: file to create or replace; its folder must exist.
        text: new content, stored as UTF-8.
        is_synced: whether to wait until content and name are on the disk, where a crash of the machine must not lose
            them.

    Raises:
        OSError: the disk refuses it.
    """
    fresh = path.with_name(f"tmp_{path.name}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):  # a full disk gets its space back
            fresh.unlink()
        raise
    if is_synced:
        sync_folder(path.parent)


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

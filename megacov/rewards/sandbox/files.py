"""The files that programs see: the standard library, shared libraries, a few devices and a small folder in memory.

mount_namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from megacov.rewards.sandbox.namespaces import LIBC, NEW_NS, SetupError, check, unshare

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_RELATIME, _RELATIME_OF_STATVFS = 1 << 21, 4096
# Flags of a mount that a user namespace may not take away; os.statvfs reports them under the same numbers.
_KEPT = _RDONLY | _NOSUID | _NODEV | _NOEXEC | 1024 | 2048
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_OLD = "/.outside"
_ESCAPE = re.compile(rb"\\([0-7]{3})")

_BASE = "/tmp"  # exists everywhere; what is below it stays in place outside
WORK = "/sandbox"
"""Folder that programs may write to."""


def leave_files(packages: Iterable[str]) -> None:
    """Give this process, which has its own users, a file system of its own; nothing in it can be written.

    Args:
        packages: further folders to show.

    Raises:
        SetupError: a step is not possible here.
    """
    wanted = _wanted(packages)
    unshare(NEW_NS, step="making a mount namespace")
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", _BASE, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=4096,mode=755")
    os.chdir(_BASE)
    Path(_BASE + _OLD).mkdir()
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise SetupError(f"the sandbox knows x86_64 and aarch64, not {platform.machine()}")
    check(LIBC.syscall(number, b".", _OLD[1:].encode()), "replacing the root folder")
    os.chdir("/")
    for path in (*_without_nested(wanted), *_DEVICES):
        _show(path)
    check(LIBC.umount2(_OLD.encode(), _DETACH), "leaving the machine's files")
    Path(_OLD).rmdir()
    Path(WORK).mkdir()
    _mount("none", "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)


def renew_work(num_bytes: int) -> None:
    """Give programs an empty folder, which becomes the working folder.

    Args:
        num_bytes: largest size of everything in it. [bytes]

    Raises:
        SetupError: it cannot be mounted.
    """
    os.chdir("/")
    LIBC.umount2(WORK.encode(), _DETACH)  # there is none the first time
    _mount("tmpfs", WORK, "tmpfs", _NOSUID | _NODEV | _NOEXEC, f"size={num_bytes},nr_inodes=4096,mode=777")
    os.chdir(WORK)


def _wanted(packages: Iterable[str]) -> list[str]:
    """Paths that exist, links followed except those of shared libraries."""
    real = {os.path.realpath(path) for path in (*sys.path, f"{sys.base_prefix}/lib", *packages) if path}
    return sorted(path for path in {*real, *_LIBRARIES} if os.path.lexists(path))


def _without_nested(paths: Iterable[str]) -> list[str]:
    paths = list(paths)
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


def _show(path: str) -> None:
    source = _OLD + path
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if os.path.islink(source):
        Path(path).symlink_to(os.readlink(source))
        return
    if os.path.isdir(source):
        Path(path).mkdir()
    else:
        Path(path).touch()
    _mount(source, path, None, _BIND | _REC)
    for mount in _mounts_below(path):
        flags = os.statvfs(mount).f_flag
        relatime = _RELATIME if flags & _RELATIME_OF_STATVFS else 0
        added = _RDONLY | _NOSUID | (0 if path in _DEVICES else _NODEV)
        with contextlib.suppress(FileNotFoundError):  # another mount hides it
            _mount("none", mount, None, _REMOUNT | _BIND | (flags & _KEPT) | relatime | added)


def _mounts_below(path: str) -> list[str]:
    """Mount points at or below a path. proc is still seen through the old root."""
    lines = Path(f"{_OLD}/proc/thread-self/mountinfo").read_bytes().splitlines()
    # proc_pid_mountinfo(5): the fifth field, in which blanks are octal.
    points = [os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4])) for line in lines]
    return [point for point in points if point == path or point.startswith(f"{path}/")]


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    def encoded(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    result = LIBC.mount(encoded(source), encoded(target), encoded(kind), flags, encoded(options))
    check(result, f"mounting {target}")

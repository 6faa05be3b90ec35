"""Namespaces of Linux: a process and its children, apart from the machine around them.

user_namespaces(7), pid_namespaces(7), network_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)

NEW_NS, NEW_UTS, NEW_IPC = 0x20000, 0x4000000, 0x8000000  # <linux/sched.h>
NEW_USER, NEW_PID, NEW_NET = 0x10000000, 0x20000000, 0x40000000

PROGRAM_ID = 1000
"""User and group of programs, as they see themselves."""
_NOBODY = 65534


class SetupError(Exception):
    """A step of the setup is not possible here; the message is the step and the reason."""


@dataclass(frozen=True, slots=True)
class Users:
    """Users inside. They differ if root of this machine made the namespace; then programs are nobody outside.

    setup_id: user that sets the sandbox up.
    program_id: user that runs programs.
    """

    setup_id: int
    program_id: int

    @property
    def num_own_processes(self) -> int:
        """Processes of the sandbox itself that count as processes of the programs' user."""
        return 2 if self.setup_id == self.program_id else 0


def check(result: int, step: str) -> int:
    """The result of a call of libc; raises SetupError with the step and the reason if it is negative."""
    if result < 0:
        raise SetupError(f"{step} failed ({os.strerror(ctypes.get_errno())})")
    return result


def prctl(option: int, value: int, *, step: str) -> None:
    """Call prctl(2) with one argument; raises SetupError."""
    zero = ctypes.c_ulong(0)
    check(LIBC.prctl(option, ctypes.c_ulong(value), zero, zero, zero), step)


def unshare(flags: int, *, step: str) -> None:
    """Call unshare(2); raises SetupError."""
    check(LIBC.unshare(flags), step)


def enter_namespaces() -> Users:
    """Leave this machine's users, network, shared memory and host name; later children also leave its processes.

    Returns:
        The users of the new namespace.

    Raises:
        SetupError: this kernel or this container does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    mapper = _start_mapper(f"0 0 1\n{PROGRAM_ID} {_NOBODY} 1\n") if user == 0 else None
    unshare(NEW_USER | NEW_PID | NEW_NET | NEW_IPC | NEW_UTS, step="making a user namespace")
    if mapper is not None and mapper.has_mapped():
        return Users(0, PROGRAM_ID)
    try:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{PROGRAM_ID} {user} 1\n", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{PROGRAM_ID} {group} 1\n", encoding="ascii")
    except OSError as error:
        raise SetupError(f"mapping users failed ({error.strerror})") from error
    return Users(PROGRAM_ID, PROGRAM_ID)


@dataclass(frozen=True, slots=True)
class _Mapper:
    """A process outside of the namespace, because only there root may map several users."""

    pid: int
    go: int

    def has_mapped(self) -> bool:
        """Have it map the users of this process, which is in the namespace now; whether it could."""
        os.write(self.go, b"!")
        os.close(self.go)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0


def _start_mapper(lines: str) -> _Mapper:
    reading, writing = os.pipe()
    parent, pid = os.getpid(), os.fork()
    if pid:
        os.close(reading)
        return _Mapper(pid, writing)
    os.close(writing)
    try:
        if os.read(reading, 1):
            Path(f"/proc/{parent}/uid_map").write_text(lines, encoding="ascii")
            Path(f"/proc/{parent}/gid_map").write_text(lines, encoding="ascii")
            os._exit(0)
    except OSError:
        pass
    os._exit(1)  # also if the parent has ended

"""What a process gives up for good before it runs a program: rights, system calls, and use of the machine.

capabilities(7), seccomp(2), setrlimit(2).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from dataclasses import dataclass

from megacov.rewards.sandbox.namespaces import LIBC, SetupError, Users, check, prctl

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 4, 24, 38, 22  # <linux/prctl.h>
_CAPABILITY_VERSION_3 = 0x20080522
_NUM_CAPABILITIES = 64
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97

_NAMESPACE_FLAGS = 0x7E020000
# Refused: memory that belongs to no process and outlives it, other processes' memory and descriptors, keys, mounts,
# namespaces, and large parts of the kernel that programs of this kind do not need.
_REFUSED = {
    "x86_64": {
        "shmget": 29,
        "msgget": 68,
        "ptrace": 101,
        "mount": 165,
        "mq_open": 240,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "perf_event_open": 298,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "memfd_create": 319,
        "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": {
        "mount": 40,
        "unshare": 97,
        "ptrace": 117,
        "mq_open": 180,
        "msgget": 186,
        "shmget": 194,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "perf_event_open": 241,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "memfd_create": 279,
        "bpf": 280,
        "userfaultfd": 282,
    },
}
# These have one number on all machines.
_REFUSED_EVERYWHERE = {
    "io_uring_setup": 425,
    "open_tree": 428,
    "fsopen": 430,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "memfd_secret": 447,
}
_CLONE3 = 435  # its flags are in memory, which a filter cannot read; glibc then uses clone
_CLONE = {"x86_64": 56, "aarch64": 220}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # <linux/audit.h>
_X32 = 0x40000000
_FAMILIES = (1, 2, 10)  # of sockets: local, IPv4, IPv6. Others, such as those to a hypervisor, know no namespaces.

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # <linux/bpf_common.h>
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000  # <linux/seccomp.h>
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a program.

    cpu_s: processor time of each of its processes. [s]
    memory_bytes: address space of each of its processes. [bytes]
    file_bytes: a file, and everything in its folder. [bytes]
    output_bytes: what it may print. [bytes]
    processes: processes and threads at the same time.
    open_files: open files of each of its processes.
    """

    cpu_s: float
    memory_bytes: int
    file_bytes: int
    output_bytes: int
    processes: int
    open_files: int


def drop_bounding_set() -> None:
    """Keep this process's children from regaining any capability; raises SetupError."""
    for capability in range(_NUM_CAPABILITIES):
        if LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 and ctypes.get_errno() != 22:  # unknown to this kernel
            raise SetupError(f"dropping capability {capability} failed ({os.strerror(ctypes.get_errno())})")


def confine(limits: Limits, users: Users) -> None:
    """Become the user of programs, under the limits, without capabilities and without a way back.

    Args:
        limits: limits of the program.
        users: users of the sandbox.

    Raises:
        SetupError: a step is not possible here.
    """
    _set_limits(limits, num_own_processes=users.num_own_processes)
    if users.setup_id != users.program_id:
        os.setgroups([])
        os.setresgid(*[users.program_id] * 3)
        os.setresuid(*[users.program_id] * 3)
    header = struct.pack("=II", _CAPABILITY_VERSION_3, 0)
    check(LIBC.capset(header, bytes(24)), "dropping capabilities")
    # Others of the same user may neither trace it nor read its memory.
    prctl(_PR_SET_DUMPABLE, 0, step="protecting the process")
    prctl(_PR_SET_NO_NEW_PRIVS, 1, step="refusing new rights")
    _filter_system_calls()


def _set_limits(limits: Limits, *, num_own_processes: int) -> None:
    cpu_s = max(1, -int(-limits.cpu_s // 1))
    values = {
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 1),
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_NPROC: limits.processes + num_own_processes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for number, value in values.items():
        soft, hard = value if isinstance(value, tuple) else (value, value)
        _, largest = resource.getrlimit(number)
        if largest != resource.RLIM_INFINITY:
            soft, hard = min(soft, largest), min(hard, largest)
        resource.setrlimit(number, (soft, hard))


def _filter_system_calls() -> None:
    program = _filter(platform.machine())
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and where they are.
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    result = LIBC.prctl(_PR_SET_SECCOMP, 2, ctypes.create_string_buffer(header, len(header)), 0, 0)
    check(result, "filtering system calls")


def _filter(machine: str) -> bytes:
    """A program of classic BPF that refuses system calls."""

    def step(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    def unless(number: int) -> bytes:
        """Skip the next instruction unless it is this call."""
        return step(_EQUAL, number, otherwise=1)

    parts = [step(_LOAD, _ARCHITECTURE_AT), step(_EQUAL, _ARCHITECTURE[machine], then=1), step(_RETURN, _KILL)]
    parts += [step(_LOAD, _NUMBER_AT)]
    if machine == "x86_64":
        parts += [step(_AT_LEAST, _X32, otherwise=1), step(_RETURN, _ERROR | _ENOSYS)]
    for number in (*_REFUSED[machine].values(), *_REFUSED_EVERYWHERE.values()):
        parts += [unless(number), step(_RETURN, _ERROR | _EPERM)]
    parts += [unless(_CLONE3), step(_RETURN, _ERROR | _ENOSYS)]
    parts += [step(_EQUAL, _CLONE[machine], otherwise=4), step(_LOAD, _FIRST_ARGUMENT_AT)]
    parts += [step(_ANY_BIT, _NAMESPACE_FLAGS, otherwise=1), step(_RETURN, _ERROR | _EPERM), step(_RETURN, _ALLOW)]
    families = [step(_EQUAL, family, then=len(_FAMILIES) - i) for i, family in enumerate(_FAMILIES)]
    parts += [step(_EQUAL, _SOCKET[machine], otherwise=len(families) + 2), step(_LOAD, _FIRST_ARGUMENT_AT)]
    parts += [*families, step(_RETURN, _ERROR | _EAFNOSUPPORT), step(_RETURN, _ALLOW)]
    return b"".join(parts)

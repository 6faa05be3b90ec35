"""The code inside a process that was forked to run `python -m MODULE ...`, and inside those that it starts.

`subprocess.Popen` forks here as well where the program is a module of ours. Only a process with a single thread may
fork, so rank 0, which starts its server beside the threads of gloo, forks a spare process before anything else, and the
spare becomes the server. A second server of the same rank is a new interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import os
import pickle
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, NoReturn

_MODULES = (
    "megacov",
    "megacov.cli.deep_check",
    "benchmarks.conversion_plan",
    "examples.graph_coloring.run",
    "examples.sum_pairs.quickstart",
    "tests.support.fault_rank",
    "tests.support.process_facts",
)
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # <linux/prctl.h>
_NAME_BYTES = 15
_ABOVE_STANDARD = 3
_start_process = subprocess._fork_exec


class Program(NamedTuple):
    """The arguments of `python -m`, and the place it runs in. The three files become its standard streams."""

    argv: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str]
    files: tuple[int, int, int]
    new_session: bool = False


def can_fork(argv: Sequence[str]) -> bool:
    """Whether `python *argv` runs one of our modules, on a system where we can fork it."""
    return sys.platform == "linux" and len(argv) > 1 and argv[0] == "-m" and argv[1] in _MODULES


def run_program(program: Program) -> NoReturn:
    """Be the program, in a process that has just been forked, and end as an interpreter ends."""
    _take_place(program)
    _name_process(program.argv)
    spare = _Spare() if _starts_server(program.argv) else None
    if spare is not None:
        atexit.register(spare.close)
    subprocess._fork_exec = _fork_or_start(spare)
    sys.argv = ["-m", *program.argv[2:]]
    module = program.argv[1]
    if not hasattr(sys.modules.get(module), "__path__"):
        sys.modules.pop(module, None)  # runpy warns of a module that it is to run and that has been imported
    _end(_exit_code(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True)))


def _take_place(program: Program) -> None:
    """Take over streams, session, signals, folder and environment; close all other files."""
    if program.new_session:
        os.setsid()
    above = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in program.files]
    for stream, each in enumerate(above):
        os.dup2(each, stream)
    _close_others()
    # The tracker's pipe has just been closed, and its number may be another file's soon.
    resource_tracker._resource_tracker._fd = resource_tracker._resource_tracker._pid = None
    _reset_signals()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (for the life of the process)
    os.chdir(program.cwd)
    os.environ.clear()
    os.environ.update(program.environment)


def _close_others(*kept: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= _ABOVE_STANDARD and int(name) not in kept:
            with contextlib.suppress(OSError):  # the folder that is being listed
                os.close(int(name))


def _reset_signals() -> None:
    """As a new interpreter finds them: what was ignored stays so, what had a handler has none."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)) and number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _name_process(argv: Sequence[str]) -> None:
    rank = os.environ.get("RANK")
    name = f"rank {rank}" if rank else (argv[2] if len(argv) > 2 else argv[1])
    _prctl(_PR_SET_NAME, name.encode()[:_NAME_BYTES])


def _prctl(option: int, value: Any) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value)


def _starts_server(argv: Sequence[str]) -> bool:
    """Whether this is rank 0, unless SGLang serves it."""
    return os.environ.get("RANK") == "0" and not any("sglang" in word for word in argv)


def _exit_code(main: Callable[[], object]) -> int:
    try:
        main()
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:  # noqa: BLE001 (an interpreter shows whatever it was and ends with 1)
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """Do as an interpreter does at its end, short of taking its modules apart."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


class _Spare:
    """A child of this process that waits, with a single thread, to become a program."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair()
        parent = os.getpid()
        self._pid: int | None = _fork()
        if self._pid == 0:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            _prctl(_PR_SET_NAME, b"spare")
            self._wait_for_program(other)
        other.close()

    def _wait_for_program(self, other: socket.socket) -> NoReturn:
        _close_others(other.fileno())
        words, files, _, _ = socket.recv_fds(other, 4, 3)
        if not words:
            os._exit(0)  # the rank has ended without a server
        with other.makefile("rb") as rest:
            argv, cwd, environment, new_session = pickle.loads(rest.read(int.from_bytes(words)))
        if new_session:
            os.setsid()
        _prctl(_PR_SET_PDEATHSIG, 0)  # from here on, ending with the rank is the server's own duty
        other.sendall(b"!")
        run_program(Program(argv, cwd, environment, (files[0], files[1], files[2])))

    def become(self, program: Program) -> int | None:
        """Become the program; the process id, or None if the spare is used up."""
        pid, self._pid = self._pid, None
        if pid is not None:
            # The one limit that a rank changes before it starts its server.
            resource.prlimit(pid, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
            rest = pickle.dumps((program.argv, program.cwd, program.environment, program.new_session))
            socket.send_fds(self._socket, [len(rest).to_bytes(4)], program.files)
            self._socket.sendall(rest)
            self._socket.recv(1)  # as Popen comes back, the session is made
        return pid

    def close(self) -> None:
        """Have a spare that is not needed end, and wait for it."""
        self._socket.close()
        if self._pid is not None:
            os.waitpid(self._pid, 0)


def _fork() -> int:
    """Fork without handing over what is still to be written, or a signal for the parent's handlers."""
    sys.stdout.flush()
    sys.stderr.flush()
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid != 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    else:
        weakref.finalize._registry.clear()  # else temporary folders of the parent go when the child ends
    return pid


def _fork_or_start(spare: _Spare | None) -> Callable[..., int]:
    """A stand-in for `subprocess._fork_exec`, the one function in which Popen makes a process."""

    def fork_or_start(*place: Any) -> int:
        program = _program_of(*place)
        if program is not None:
            if len(os.listdir("/proc/self/task")) == 1:
                return _fork_program(program, spare)
            pid = spare.become(program) if spare is not None and program.argv[2:3] == ("serve",) else None
            if pid is not None:
                return pid
        return _start_process(*place)

    return fork_or_start


def _fork_program(program: Program, spare: _Spare | None) -> int:
    pid = _fork()
    if pid == 0:
        if spare is not None:
            atexit.unregister(spare.close)
        run_program(program)
    return pid


def _program_of(*place: Any) -> Program | None:
    """The program that Popen is to start, if it can be forked. Popen has already made the files that a pipe needs."""
    args, _, close_fds, fds_to_keep, cwd, environment, read, _, _, write, _, error, _, errpipe = place[:14]
    _, new_session, group, gid, gids, uid, umask, preexec_fn, _ = place[14:]
    words = [os.fsdecode(word) for word in args]
    is_plain = close_fds and tuple(fds_to_keep) == (errpipe,)
    is_plain = is_plain and (group, gid, gids, uid, umask, preexec_fn) == (-1, None, None, None, -1, None)
    if not is_plain or words[0] != sys.executable or not can_fork(words[1:]):
        return None
    files = tuple(given if given >= 0 else stream for stream, given in enumerate((read, write, error)))
    pairs = dict(os.environ)
    if environment is not None:
        pairs = dict(os.fsdecode(each).split("=", 1) for each in environment)
    return Program(tuple(words[1:]), os.fsdecode(cwd or os.getcwd()), pairs, files, bool(new_session))

"""A `python -m MODULE ...` that is forked from a process with all imports done, instead of being started anew.

Importing torch, Megatron and transformers takes a rank or a server four seconds of computing, and tests start hundreds
of them. All else is as in a process that was started: id, parent, session, signals, environment, files, exit code, and
that it ends when its parent does. Only /proc/PID/cmdline and /proc/PID/environ are those of the fork server; `name_of`
says what a process is.

Inside such a process, `subprocess.Popen` forks as well where the program is a module of ours. Only a process with a
single thread may fork, so rank 0, which starts its server beside the threads of gloo, forks a spare process before
anything else, and that becomes the server. A second server of the same rank is started anew.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import multiprocessing
import multiprocessing.forkserver
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
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psutil

_MODULES = (
    "megacov",
    "benchmarks.conversion_plan",
    "examples.sum_pairs.quickstart",
    "tests.support.fault_rank",
    "tests.support.process_facts",
)
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # <linux/prctl.h>
_NAME_BYTES = 15
_ABOVE_STANDARD = 3
_start_process = subprocess._fork_exec

context: ForkServerContext = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.support.preload"])


class Program(NamedTuple):
    """What `python -m` would be given, and the place it runs in. The three files become its standard streams."""

    argv: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str]
    files: tuple[int, int, int]
    new_session: bool = False


class ForkedCommand:
    """A running command, with those parts of `subprocess.Popen` that tests use."""

    def __init__(self, argv: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path) -> None:
        """Fork it from the fork server; standard output and error go to the log, and nothing is to be read."""
        place = (tuple(argv), str(cwd), dict(environment), str(log))
        self._process = context.Process(target=_become_command, args=place)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process itself, if it runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, if it runs."""
        self.send_signal(signal.SIGKILL)


def can_fork(argv: Sequence[str]) -> bool:
    """Whether `python *argv` runs one of our modules, on a system where we can fork it."""
    return sys.platform == "linux" and len(argv) > 1 and argv[0] == "-m" and argv[1] in _MODULES


def name_of(process: psutil.Process) -> str:
    """What a process is: "serve" for a server, "rank 1" for a rank, or another word."""
    name = process.name()
    if name.startswith("python"):
        rank = process.environ().get("RANK")
        return "serve" if "serve" in process.cmdline() else f"rank {rank}" if rank else name
    return name


def cpu_seconds() -> float:
    """Seconds that the fork server and its children, as far as these have ended, have computed."""
    pid = multiprocessing.forkserver._forkserver._forkserver_pid
    if pid is None:
        return 0.0
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def _become_command(argv: tuple[str, ...], cwd: str, environment: dict[str, str], log: str) -> NoReturn:
    assert "tests.support.preload" in sys.modules, "the fork server has not loaded what it should have"
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    _run(Program(argv, cwd, environment, (nothing, output, output)))


def _run(program: Program) -> NoReturn:
    """Be the program, in a process that has just been forked, and end as an interpreter ends."""
    _take_place(program)
    _name_process(program.argv)
    spare = _Spare() if _starts_server(program.argv) else None
    if spare is not None:
        atexit.register(spare.close)
    subprocess._fork_exec = _fork_or_start(spare)
    sys.argv = ["-m", *program.argv[2:]]
    _end(_exit_code(lambda: runpy.run_module(program.argv[1], run_name="__main__", alter_sys=True)))


def _take_place(program: Program) -> None:
    """Take over streams, session, signals, folder and environment; close all other files."""
    if program.new_session:
        os.setsid()
    above = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in program.files]
    for stream, each in enumerate(above):
        os.dup2(each, stream)
    _close_others()
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
        _run(Program(argv, cwd, environment, (files[0], files[1], files[2]), new_session))

    def become(self, program: Program) -> int | None:
        """Become the program; the process id, or None if the spare is used up."""
        pid, self._pid = self._pid, None
        if pid is not None:
            # The one limit that a rank changes before it starts its server.
            resource.prlimit(pid, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
            rest = pickle.dumps((program.argv, program.cwd, program.environment, program.new_session))
            socket.send_fds(self._socket, [len(rest).to_bytes(4)], program.files)
            self._socket.sendall(rest)
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
                return _fork_program(program)
            pid = spare.become(program) if spare is not None and program.argv[2:3] == ("serve",) else None
            if pid is not None:
                return pid
        return _start_process(*place)

    return fork_or_start


def _fork_program(program: Program) -> int:
    pid = _fork()
    if pid == 0:
        _run(program)
    return pid


def _program_of(*place: Any) -> Program | None:
    """What Popen is to start, if it can be forked. Popen has already made the files that a pipe needs."""
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

"""The sandbox from inside. Two processes make it: one that watches, and the first process of the sandbox.

When the first process ends, Linux kills all others in the sandbox. It ends when the watching process does, which ends
when the verifier does. Each test runs in new processes and an empty folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from megacov.rewards.frames import pack
from megacov.rewards.sandbox.confinement import Limits, confine, drop_bounding_set
from megacov.rewards.sandbox.files import leave_files, renew_work
from megacov.rewards.sandbox.namespaces import SetupError, Users, enter_namespaces, prctl
from megacov.rewards.sandbox.plain import from_json
from megacov.rewards.sandbox.programs import call_function, run_as_main, run_tests, serve_functions

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_LENGTH = struct.Struct(">Q")
_WATCH_S = 0.05
_POLL_S = 0.001
_PIECE = 1 << 16


def main() -> NoReturn:
    """Make a sandbox for each socket that arrives through standard input, until the verifier ends."""
    verifier = os.getppid()
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, step="following the verifier")
    os.environ.clear()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the first process of a sandbox ignores signals without a handler
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for sandboxes
    with socket.socket(fileno=os.dup(0)) as sockets:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.close(null)
        launcher = os.getpid()
        while os.getppid() == verifier:
            message, descriptors, _, _ = socket.recv_fds(sockets, 1, 1)
            if not message:
                break
            if os.fork() == 0:
                sockets.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _make_sandbox(descriptors[0], launcher)
            os.close(descriptors[0])
    os._exit(0)


def _make_sandbox(connection: int, launcher: int) -> NoReturn:
    """Run what a socket asks for, in a sandbox."""
    try:
        job = _read_frame(connection)
        users = enter_namespaces()
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, step="following the launcher")
        if os.getppid() != launcher:
            os._exit(1)
        ends_with_first, held_by_first = os.pipe()
        first = os.fork()
        if first == 0:
            os.close(ends_with_first)
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, step="following the watch")
            leave_files(job["packages"])
            drop_bounding_set()
            prctl(_PR_SET_DUMPABLE, 0, step="protecting the first process")
            _FirstProcess(connection, job, users).serve()
        os.close(held_by_first)
        _watch(first, ends_with_first, connection, job["memory_bytes"])
    except (SetupError, OSError) as error:
        os.write(connection, pack({"failed": str(error)}))
    except EOFError:
        pass
    os._exit(0)


def _watch(first: int, ends_with_first: int, connection: int, memory_bytes: int) -> None:
    """Wait for the first process. Kill it when the verifier hangs up, or the sandbox takes too much memory."""
    poll = select.poll()
    poll.register(ends_with_first, 0)
    poll.register(connection, select.POLLRDHUP)
    while not poll.poll(_WATCH_S * 1000) and _memory(first) <= memory_bytes:
        pass
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)  # which ends when all in the sandbox have ended


def _memory(pid: int) -> int:
    """Memory of a process and all below it that is no file's. [bytes]"""
    total, found = 0, [pid]
    while found:
        folder = f"/proc/{found.pop()}"
        with contextlib.suppress(OSError, ValueError):  # it has ended, or this kernel lacks one of these files
            with open(f"{folder}/statm", encoding="ascii") as file:
                _, resident, shared, *_ = map(int, file.read().split())
            total += (resident - shared) * os.sysconf("SC_PAGESIZE")
            for thread in os.listdir(f"{folder}/task"):
                with open(f"{folder}/task/{thread}/children", encoding="ascii") as file:
                    found += map(int, file.read().split())
    return total


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of a process.

    status: "done", "failed" for an exit code other than 0 or a signal, "late", or "output" for too much output.
    """

    status: str
    output: bytes


class _FirstProcess:
    """Runs tests, one after the other."""

    def __init__(self, connection: int, job: dict[str, Any], users: Users) -> None:
        self._connection, self._users = connection, users
        self._source: str = job["source"]
        self._wall_s: float = job["wall_s"]
        self._limits = Limits(**job["limits"])
        # Links are not followed inside, where what they point to may be missing.
        sys.path[:] = [*map(os.path.realpath, sys.path), *job["packages"]]
        sys.path_importer_cache.clear()

    def serve(self) -> NoReturn:
        os.write(self._connection, pack({"ready": True}))
        with contextlib.suppress(EOFError):
            while True:
                self._renew()
                result = self._run(_read_frame(self._connection))
                _kill_all()
                output = result.output.decode("utf-8", errors="replace")
                _write_all(self._connection, pack({"status": result.status, "output": output}))
        os._exit(0)

    def _renew(self) -> None:
        try:
            renew_work(self._limits.file_bytes)
        except SetupError as error:
            os.write(self._connection, pack({"failed": str(error)}))
            os._exit(1)

    def _run(self, test: dict[str, Any]) -> _Result:
        reading, writing = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        match test["kind"]:
            case "main":
                stdin = os.memfd_create("input")
                _write_all(stdin, test["input"].encode("utf-8", errors="surrogatepass"))
                os.lseek(stdin, 0, os.SEEK_SET)
                pid = self._start(lambda: run_as_main(self._source), stdin=stdin, stdout=writing)
                os.close(stdin)
            case "call":
                arguments = from_json(test["arguments"])

                def call() -> None:
                    call_function(self._source, test["name"], arguments, writing)

                pid = self._start(call, stdin=null, stdout=null, kept=(writing,))
            case _:
                pid = self._start_tests(null, writing)
        os.close(writing)
        os.close(null)
        try:
            return self._collect(pid, reading)
        finally:
            os.close(reading)

    def _start_tests(self, null: int, writing: int) -> int:
        """Start the response's process, and that of the tests, which reads them itself: the former never holds them."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._start(lambda: serve_functions(self._source, theirs), stdin=null, stdout=null, kept=(theirs.fileno(),))

            def test() -> None:
                run_tests(_read_frame(self._connection)["statements"], ours, writing)

            kept = (ours.fileno(), writing, self._connection)
            return self._start(test, stdin=null, stdout=null, kept=kept)

    def _start(self, action: Callable[[], None], *, stdin: int, stdout: int, kept: tuple[int, ...] = ()) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            self._become_program(stdin, stdout, kept)
            action()
            sys.stdout.flush()
            status = 0
        except SystemExit as error:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                status = (error.code & 255) if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:  # noqa: BLE001 - a response may raise anything
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
        finally:
            os._exit(status)

    def _become_program(self, stdin: int, stdout: int, kept: tuple[int, ...]) -> None:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        for number, descriptor in enumerate((stdin, stdout, null)):
            os.dup2(descriptor, number)
        first = 3
        for descriptor in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
            os.closerange(first, descriptor)
            first = descriptor + 1
        confine(self._limits, self._users)
        sys.stdin = sys.__stdin__ = _stream(0, "r")  # type: ignore[misc]
        sys.stdout = sys.__stdout__ = _stream(1, "w")  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _stream(2, "w")  # type: ignore[misc]

    def _collect(self, pid: int, reading: int) -> _Result:
        """Read what a process writes until it ends, or has to be ended."""
        os.set_blocking(reading, False)
        deadline = time.monotonic() + self._wall_s
        output, is_open, status = bytearray(), True, None
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        while True:
            if is_open and poll.poll(_POLL_S * 10 * 1000):
                is_open = _read_some(reading, output)
            if not is_open:
                time.sleep(_POLL_S / 4)
            if status is not None and not (is_open and poll.poll(0)):
                break
            if len(output) > self._limits.output_bytes:
                return _Result("output", b"")
            if time.monotonic() > deadline:
                return _Result("late", bytes(output))
            if status is None:
                ended, number = os.waitpid(pid, os.WNOHANG)
                status = number if ended else None
        return _Result("done" if status == 0 else "failed", bytes(output))


def _stream(descriptor: int, mode: Literal["r", "w"]) -> io.TextIOWrapper:
    return open(descriptor, mode, encoding="utf-8", errors="replace")


def _read_some(reading: int, output: bytearray) -> bool:
    """Read what there is; whether more may come."""
    try:
        piece = os.read(reading, _PIECE)
    except BlockingIOError:
        return True
    output += piece
    return bool(piece)


def _kill_all() -> None:
    """Kill and reap every other process of the sandbox, of which this one is the first."""
    with contextlib.suppress(ChildProcessError):
        while True:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            os.waitpid(-1, 0)


def _read_frame(descriptor: int) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(_read_exactly(descriptor, _LENGTH.size))
    message: dict[str, Any] = json.loads(_read_exactly(descriptor, length))
    return message


def _read_exactly(descriptor: int, num_bytes: int) -> bytes:
    content = bytearray()
    while len(content) < num_bytes:
        piece = os.read(descriptor, min(_PIECE, num_bytes - len(content)))
        if not piece:
            raise EOFError
        content += piece
    return bytes(content)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]

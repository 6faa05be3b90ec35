"""A sandbox for programs that nobody has read, as seen from outside. Linux only; docs/code_and_judges.md."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megacov.errors import ConfigError
from megacov.rewards.frames import FrameBuffer, pack
from megacov.rewards.sandbox.confinement import Limits

_PACKAGE_ROOT = str(Path(__file__).parents[3])
# The path of this package is gone before a program runs; -S leaves installed packages out.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from megacov.rewards.sandbox.inside import main; sys.path.pop(); main()"
)
_END_S = 5.0
_PROBE_S = 20.0
_PROBE_BYTES = 2**31
_PROBE = """
import os, time
made = 0
try:
    for _ in range(50):
        if os.fork() == 0:
            time.sleep(60)
        made += 1
except BlockingIOError:
    pass
print(made)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """How programs run.

    limits: limits of a program.
    memory_bytes: memory of all processes of a sandbox together. [bytes]
    wall_s: time of a test by the clock. [s]
    packages: folders of further modules that programs may import.
    """

    limits: Limits
    memory_bytes: int
    wall_s: float
    packages: Sequence[str] = ()


class SandboxError(Exception):
    """A sandbox cannot be made on this machine."""


@dataclass(slots=True)
class Sandbox:
    """One program's sandbox; leaving its context ends everything in it.

    deadline: when the sandbox must have answered everything, on the clock of time.monotonic. [s]
    """

    deadline: float
    _socket: socket.socket
    _frames: FrameBuffer = field(default_factory=FrameBuffer)

    @classmethod
    def start(cls, source: str, settings: SandboxSettings, *, total_s: float) -> Sandbox:
        """Make a sandbox.

        Args:
            source: text of the program.
            settings: how it runs.
            total_s: deadline of everything together. [s]

        Returns:
            A sandbox in which nothing runs yet.

        Raises:
            SandboxError: this machine does not allow it.
        """
        sandbox = cls(time.monotonic() + total_s, _connect())
        job = {
            "source": source,
            "limits": asdict(settings.limits),
            "memory_bytes": settings.memory_bytes,
            "wall_s": settings.wall_s,
            "packages": [os.path.realpath(path) for path in settings.packages],
        }
        answer = sandbox._exchange(job)
        if answer is None or "failed" in answer:
            sandbox.close()
            reason = "its process ended" if answer is None else answer["failed"]
            raise SandboxError(reason)
        return sandbox

    def run(self, test: Mapping[str, Any], *further: Mapping[str, Any]) -> tuple[str, str]:
        """Run a test.

        Args:
            test: its kind and what that needs, as `inside` takes it.
            *further: messages behind it.

        Returns:
            Its status ("done", "failed", "late", "output", or "ended" if the whole sandbox has ended), and its output.

        Raises:
            SandboxError: the next program's folder could not be made.
        """
        answer = self._exchange(test, *further)
        if answer is None:
            return "ended", ""
        if "failed" in answer:
            raise SandboxError(answer["failed"])
        return answer["status"], answer["output"]

    def _exchange(self, *messages: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send messages, and wait for one; None if none comes in time."""
        try:
            for message in messages:
                self._socket.settimeout(max(0.001, self.deadline - time.monotonic()))
                self._socket.sendall(pack(dict(message)))
            while (answer := self._frames.pop()) is None:
                self._socket.settimeout(max(0.001, self.deadline - time.monotonic()))
                piece = self._socket.recv(1 << 16)
                if not piece:
                    return None
                self._frames.feed(piece)
        except OSError:  # late, or closed at the other end
            return None
        return answer

    def close(self) -> None:
        """End everything in the sandbox, and wait until it has ended."""
        with self._socket, contextlib.suppress(OSError):
            self._socket.settimeout(_END_S)
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(1 << 16):
                pass

    def __enter__(self) -> Self:
        """Return the sandbox itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End everything in the sandbox."""
        self.close()


def _connect() -> socket.socket:
    """A connection to a new sandbox."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            socket.send_fds(_launcher().socket, [b"!"], [theirs.fileno()])
        except OSError:  # it has ended
            _launcher.cache_clear()
            socket.send_fds(_launcher().socket, [b"!"], [theirs.fileno()])
    return ours


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A process that makes sandboxes until its socket is closed."""

    process: subprocess.Popen[bytes]
    socket: socket.socket


@functools.cache
def _launcher() -> _Launcher:
    """Start a process that makes sandboxes: to fork one is ten times as fast as to start an interpreter for each."""
    ours, theirs = socket.socketpair()
    # An interpreter that was built elsewhere may need this to start. Programs do not get it.
    kept = {name: value for name in ("LD_LIBRARY_PATH",) if (value := os.environ.get(name))}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, _PACKAGE_ROOT],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=kept,
            cwd="/",
            start_new_session=True,
        )
    return _Launcher(process, ours)


def check_sandbox(settings: SandboxSettings) -> None:
    """Check that sandboxes can be made here, and that their limit on processes holds.

    Args:
        settings: how programs run.

    Raises:
        ConfigError: they cannot, or it does not.
    """
    advice = "allow user namespaces on the machine of rank 0 (docs/code_and_judges.md), or use another verifier"
    if sys.platform != "linux":
        raise ConfigError("the sandbox of code needs Linux; use another verifier.")
    missing = [path for path in settings.packages if not os.path.isdir(path)]
    if missing:
        raise ConfigError(f"packages: there is no folder {missing[0]}; correct the path.")
    try:
        # Pages that processes share count for each of them, and these are many.
        roomy = replace(settings, memory_bytes=max(settings.memory_bytes, _PROBE_BYTES))
        with Sandbox.start(_PROBE, roomy, total_s=_PROBE_S) as sandbox:
            status, output = sandbox.run({"kind": "main", "input": ""})
    except SandboxError as error:
        raise ConfigError(f"a sandbox for programs of responses cannot be made here: {error}; {advice}.") from error
    if status != "done" or not output.strip().isdecimal() or int(output) >= max(50, settings.limits.processes):
        raise ConfigError(
            f"a program in a sandbox started {output.strip() or 'no'} processes (status {status}) where "
            f"{settings.limits.processes} are allowed, so its limits do not hold here; {advice}."
        )

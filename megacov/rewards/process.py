"""The trainer's end of a process of verifiers."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megacov.errors import ConfigError
from megacov.rewards.frames import FrameBuffer, pack
from megacov.rewards.settings import VerifierSettings

# The search path of this process, so that the verifier is the module that would be imported here.
_PROGRAM = "import sys; _, fd, *sys.path = sys.argv; from megacov.rewards.worker import main; main(int(fd))"
_END_S = 6.0  # the guard takes up to 5
_POLL_S = 0.002
_STANDARD_ERROR = 2
_CLOSED = {"died": "SIGKILL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """How a process of verifiers is started.

    verifiers: what the process imports.
    log_path: file to which everything that they print is appended; None for standard error.
    environment: environment of the process; None for that of this process.
    """

    verifiers: tuple[VerifierSettings, ...]
    log_path: Path | None = None
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """What is known of an imported verifier.

    wanted: names of the values that it asks for.
    checks_answers: whether it looks at the answers of the data.
    """

    wanted: tuple[str, ...]
    checks_answers: bool


@dataclass(slots=True, eq=False)
class VerifierProcess:
    """A running process: a guard, and its child that calls verifiers.

    ready: its verifiers in the order of the settings; None until all are imported.
    has_begun: whether a verifier was called for the last message.
    """

    settings: ProcessSettings
    process: subprocess.Popen[bytes]
    socket: socket.socket
    ready: tuple[Ready, ...] | None = None
    has_begun: bool = False
    _frames: FrameBuffer = field(default_factory=FrameBuffer)
    _loop: asyncio.AbstractEventLoop | None = None
    _answer: asyncio.Future[dict[str, Any]] | None = None
    _is_closed: bool = False

    @classmethod
    def start(cls, settings: ProcessSettings) -> VerifierProcess:
        """Start a process and return at once; the caller must end it."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as files:
            log = None
            if settings.log_path is not None:
                settings.log_path.parent.mkdir(parents=True, exist_ok=True)  # a user may have moved the run folder
                log = files.enter_context(settings.log_path.open("ab"))
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), *sys.path],
                stdin=subprocess.PIPE,
                stdout=log or _STANDARD_ERROR,
                stderr=log or _STANDARD_ERROR,
                pass_fds=(theirs.fileno(),),
                env=None if settings.environment is None else dict(settings.environment),
                # The terminal's Ctrl-C must not end it before the trainer has saved.
                start_new_session=True,
            )
        with contextlib.suppress(OSError):  # it has died, or does not read; whoever waits for it finds out
            ours.settimeout(_END_S)  # of no account for settings that fit into the socket's buffer
            ours.sendall(pack({"verifiers": [each.to_json() for each in settings.verifiers]}))
        ours.setblocking(False)
        return cls(settings, process, ours)

    def read_start(self, answer: dict[str, Any]) -> None:
        """Take the first message of the process; raises ConfigError if a verifier could not be imported."""
        if "ready" not in answer:
            died = f"the process ended while importing it ({answer.get('died')})"
            raise ConfigError(answer.get("refused") or f"{_named(self.settings)}: {died}.")
        self.ready = tuple(Ready(tuple(each["wanted"]), each["checks_answers"]) for each in answer["ready"])

    def receive(self) -> dict[str, Any] | None:
        """Read what has arrived, without waiting; the next message, or None if it is not complete."""
        try:
            piece = self.socket.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError:
            piece = b""
        if not piece:
            return _CLOSED
        self._frames.feed(piece)
        return self._next_message()

    def _next_message(self) -> dict[str, Any] | None:
        """The next message of those that were read, or None if it is not complete."""
        try:
            message = self._frames.pop()
            if message is not None and "begun" in message:
                self.has_begun = True
                message = self._frames.pop()
        except ValueError:
            return _CLOSED
        return message

    async def ask(self, messages: bytes, *, timeout_s: float) -> dict[str, Any] | None:
        """Send messages, and wait for the next answer; None if it is late.

        Each message has one answer, in the same order. Further calls, with b"" for no further message, wait for the
        others. A process that has died answers with the key "died". After either, only `end` may be called.
        """
        self.has_begun = False
        if not messages and (found := self._next_message()) is not None:
            return found
        loop, answer = self._listen()
        try:
            async with asyncio.timeout(timeout_s):
                with contextlib.suppress(ConnectionError):  # it has died, and the guard has told how
                    await loop.sock_sendall(self.socket, messages)
                await answer
        except TimeoutError:
            # The event loop may have stood still while the answer came.
            if answer.cancelled() or not answer.done():
                return self.receive()
        return answer.result()

    async def wait_started(self, *, timeout_s: float) -> None:
        """Wait until the verifiers are imported; raises ConfigError if one cannot be, or not in time."""
        if self.ready is None:
            answer = await self.ask(b"", timeout_s=timeout_s)
            if answer is None:
                raise _late(self.settings, timeout_s)
            self.read_start(answer)

    def _listen(self) -> tuple[asyncio.AbstractEventLoop, asyncio.Future[dict[str, Any]]]:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self.socket, self._on_readable)
        self._answer = self._loop.create_future()
        return self._loop, self._answer

    def _on_readable(self) -> None:
        assert self._loop is not None
        if self._answer is None or self._answer.done():
            # A further answer, or the process has died; the next call of `ask` finds out.
            self._stop_listening()
            return
        message = self.receive()
        if message is not None:
            self._answer.set_result(message)

    def _stop_listening(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self.socket)
            self._loop = None

    def ask_to_end(self) -> None:
        """Have the guard end the verifier and everything that it has started; returns at once."""
        if not self._is_closed:
            self._is_closed = True
            self._stop_listening()
            assert self.process.stdin is not None
            # A byte, and not only the end of the pipe: processes that this one has forked may share it.
            with contextlib.suppress(OSError):
                self.process.stdin.write(b"!")
                self.process.stdin.flush()
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.socket.close()

    async def end(self) -> None:
        """End the process, without blocking the event loop."""
        self.ask_to_end()
        deadline = time.monotonic() + _END_S
        while self.process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        self.process.kill()


def wait_for_first(processes: Sequence[VerifierProcess], *, timeout_s: float) -> tuple[Ready, ...]:
    """Wait until one process has imported its verifiers. Blocks this thread.

    Args:
        processes: processes of the same verifiers, before `VerifierProcess.ask`.
        timeout_s: deadline. [s]

    Returns:
        The verifiers in the order of the settings.

    Raises:
        ConfigError: a verifier cannot be imported or called, or not in time.
    """
    deadline = time.monotonic() + timeout_s
    # Not `select.select`, which refuses descriptors from 1024: rank 0 of a large run holds more connections than that.
    with selectors.DefaultSelector() as selector:
        for each in processes:
            selector.register(each.socket, selectors.EVENT_READ, each)
        while (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                answer = key.data.receive()
                if answer is not None:
                    key.data.read_start(answer)
                    return tuple(key.data.ready)
    raise _late(processes[0].settings, timeout_s)


def end_processes(processes: Sequence[VerifierProcess]) -> None:
    """End processes and everything that their verifiers have started. Blocks this thread, for a bounded time."""
    for each in processes:
        each.ask_to_end()
    deadline = time.monotonic() + _END_S
    for each in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            each.process.wait(max(0.0, deadline - time.monotonic()))
        each.process.kill()
        each.process.wait()


def check_verifier(
    settings: VerifierSettings, *, timeout_s: float, environment: Mapping[str, str] | None = None
) -> Ready:
    """Import a verifier in a process of its own, and look at its signature.

    Args:
        settings: the verifier and its arguments.
        timeout_s: deadline. [s]
        environment: environment of the process; None for that of this process.

    Returns:
        What the verifier asks for.

    Raises:
        ConfigError: the verifier cannot be imported or called, or not in time.
    """
    process = VerifierProcess.start(ProcessSettings(verifiers=(settings,), environment=environment))
    try:
        return wait_for_first([process], timeout_s=timeout_s)[0]
    finally:
        end_processes([process])


def _late(settings: ProcessSettings, timeout_s: float) -> ConfigError:
    return ConfigError(
        f"{_named(settings)} was not imported within rewards.start_timeout_s = {timeout_s:g} s; raise it, or see "
        "what the module waits for."
    )


def _named(settings: ProcessSettings) -> str:
    names = [each.name for each in settings.verifiers]
    return f"{settings.verifiers[0].setting}: {names[0] if len(names) == 1 else 'one of ' + ', '.join(names)}"

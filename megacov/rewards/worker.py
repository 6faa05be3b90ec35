"""A process of verifiers: a guard that runs no code of the user, and its child, which calls the verifiers.

The guard ends everything that the verifier has started, also in sessions of its own, as soon as the trainer asks for
it, the trainer is gone, or the child has ended. Neither imports torch, Megatron or megacov's trainer.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from megacov.errors import ConfigError, DataError
from megacov.launch.output import keep_output
from megacov.rewards.call import Caller, described
from megacov.rewards.frames import FrameBuffer, pack
from megacov.rewards.guard import guard
from megacov.rewards.loading import LoadedVerifier, load_verifier
from megacov.rewards.settings import VerifierSettings

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36  # <linux/prctl.h>
# Schedulers send these to all processes of a job before it ends. Verdicts are still needed until the trainer has saved.
_KEPT_OFF = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def main(descriptor: int) -> NoReturn:
    """Run verifiers until the trainer ends this process.

    Args:
        descriptor: socket to the trainer, which first sends the verifiers' settings.
    """
    trainer = os.getppid()
    connection = socket.socket(fileno=descriptor)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the verifier become children of the guard
    own = os.getpid()
    child = os.fork()
    if child:
        _prctl(_PR_SET_NAME, b"verifier guard")
        guard(child, connection, trainer=trainer, ignored=_KEPT_OFF)
        os._exit(0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != own:
        os._exit(1)
    _prctl(_PR_SET_NAME, b"verifier")
    _leave_guard()
    with contextlib.suppress(ConnectionError):  # the trainer has ended this process, or is gone
        _serve(connection)
    os._exit(0)


def _prctl(option: int, value: Any) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value)


def _leave_guard() -> None:
    """Take a session of its own, so that a verifier that signals its group does not reach the guard."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    keep_output()  # a full disk must not make the verifier's `print` fail, and score 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    # A handler and not SIG_IGN, which programs started by the verifier would inherit: it could not terminate them.
    for number in _KEPT_OFF:
        signal.signal(number, lambda *_: None)
    # A forked process would keep the handler. It must not lose a signal that comes before the handler is reset.
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT_OFF),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _KEPT_OFF),
        after_in_child=_restore_signals,
    )


def _restore_signals() -> None:
    for number in _KEPT_OFF:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _KEPT_OFF)


def _print_into(path: str) -> None:
    """Append everything that is printed from now on, also by programs that the verifier starts, to a file."""
    try:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return  # verdicts matter more than what is printed
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)


def _serve(connection: socket.socket) -> None:
    messages = _messages(connection)
    verifiers: list[LoadedVerifier] = []
    for settings in (VerifierSettings(**each) for each in next(messages)["verifiers"]):
        try:
            verifiers.append(load_verifier(settings).prepared())
        except ConfigError as error:
            connection.sendall(pack({"refused": str(error)}))
            return
        except BaseException as error:  # noqa: BLE001 - importing runs the user's module, which may raise anything
            sentence = f"{settings.setting}: importing {settings.name} raised {described(error)}."
            connection.sendall(pack({"refused": sentence}))
            return
    callers, own = [Caller(each.judges, each.wanted, each.arguments) for each in verifiers], os.getpid()
    ready = [{"wanted": each.wanted.names, "checks_answers": each.checks_answers} for each in verifiers]
    connection.sendall(pack({"ready": ready}))
    for message in messages:
        if "log" in message:
            _print_into(message["log"])
            connection.sendall(pack({"prints": True}))
            continue
        connection.sendall(pack({"begun": True}))  # a process that dies before costs no verdict
        if "answers" in message:
            answer = {"bad": _bad_answers(verifiers[message["verifier"]], message["answers"], message["rows"])}
        else:
            outcome = callers[message["verifier"]].call(message["values"])
            answer = {"reward": outcome.reward, "failure": outcome.failure, "reason": outcome.reason}
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that the verifier left would interrupt this loop
        if os.getpid() != own:
            os._exit(1)  # a process that the verifier forked and let return
        connection.sendall(pack(answer))


def _messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """Messages of the trainer, until it closes the socket."""
    frames = FrameBuffer()
    while True:
        message = frames.pop()
        while message is None:
            piece = connection.recv(1 << 16)
            if not piece:
                return
            frames.feed(piece)
            message = frames.pop()
        yield message


def _bad_answers(
    verifier: LoadedVerifier, answers: Sequence[str], rows: Sequence[dict[str, Any]] | None
) -> list[tuple[int, str]]:
    """Places of the answers that the verifier cannot judge against, each with the reason."""
    bad = []
    for place, answer in enumerate(answers):
        try:
            verifier.check_answer(answer, None if rows is None else rows[place])
        except DataError as error:
            bad.append((place, str(error)))
        except BaseException as error:  # noqa: BLE001 - a user's function may raise anything
            bad.append((place, f"its check_answer raised {described(error)}."))
    return bad

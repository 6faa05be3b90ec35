"""A verifier's process: a guard that runs no code of the user, and its child, which calls the verifier.

The guard ends everything that the verifier has started, also in sessions of its own, as soon as the trainer asks for
it, the trainer is gone, or the child has ended. Neither imports torch, Megatron or megacov's trainer.
"""

from __future__ import annotations

import ctypes
import io
import os
import signal
import socket
import sys
from typing import Any, NoReturn

from megacov.errors import ConfigError
from megacov.launch.output import keep_output
from megacov.rewards.call import Caller
from megacov.rewards.frames import FrameBuffer, pack
from megacov.rewards.guard import guard
from megacov.rewards.registry import find_verifier
from megacov.rewards.signature import wanted_values

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36  # <linux/prctl.h>
# Schedulers send these to all processes of a job before it ends. Verdicts are still needed until the trainer has saved.
_KEPT_OFF = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def main(descriptor: int, name: str) -> NoReturn:
    """Run a verifier until the trainer ends this process.

    Args:
        descriptor: socket to the trainer.
        name: name of the verifier.
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
    _serve(connection, name)
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


def _serve(connection: socket.socket, name: str) -> None:
    try:
        verifier = find_verifier(name)
        wanted = wanted_values(verifier, name)
    except ConfigError as error:
        connection.sendall(pack({"refused": str(error)}))
        return
    except BaseException as error:  # noqa: BLE001 - importing runs the user's module, which may raise anything
        connection.sendall(pack({"refused": f"rewards.verifier: importing {name} raised {type(error).__name__}."}))
        return
    caller, own = Caller(verifier, wanted), os.getpid()
    connection.sendall(pack({"ready": wanted.names}))
    frames = FrameBuffer()
    while True:
        values = frames.pop()
        while values is None:
            piece = connection.recv(1 << 16)
            if not piece:
                return
            frames.feed(piece)
            values = frames.pop()
        connection.sendall(pack({"begun": True}))  # a process that dies before costs no verdict
        outcome = caller.call(values)
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that the verifier left would interrupt this loop
        if os.getpid() != own:
            os._exit(1)  # a process that the verifier forked and let return
        connection.sendall(pack({"reward": outcome.reward, "failure": outcome.failure, "reason": outcome.reason}))

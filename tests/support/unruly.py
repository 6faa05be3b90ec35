"""A verifier that does what the response names, as users' verifiers do it, and one that reports on its surroundings."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np


class OwnError(BaseException):
    """A user's own exception, which does not even print."""

    def __str__(self) -> str:
        raise ValueError


def _raise(error: BaseException) -> None:
    raise error


def _recurse() -> None:
    _recurse()


def _interrupt(*_: object) -> None:
    raise TimeoutError("alarm")


def _with_alarm(seconds: float, then: float) -> float:
    """As math-verify bounds its own time."""
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    return then


def _bounded_by_alarm() -> float:
    try:
        _with_alarm(0.05, 0.0)
        time.sleep(60)
    except TimeoutError:
        return 0.5
    return 0.0


def _ends_what_it_starts() -> float:
    """Whether programs and processes that the verifier starts obey SIGTERM."""
    program = subprocess.Popen(["sleep", "1000"])
    program.terminate()
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    process.start()
    process.terminate()
    process.join(20)
    return float(program.wait(20) == -signal.SIGTERM and process.exitcode == -signal.SIGTERM)


def _leave_behind(then: Callable[[], object]) -> None:
    """Start a process in a session of its own, and hold all output open."""
    subprocess.Popen(["sleep", "1234.5"], start_new_session=True)
    then()


ACTIONS: dict[str, tuple[Callable[[], Any], float, str | None]] = {
    "true": (lambda: True, 1.0, None),
    "np.bool_": (lambda: np.bool_(True), 1.0, None),
    "np.float32": (lambda: np.float32(0.25), 0.25, None),
    "np.int64": (lambda: np.int64(-3), -3.0, None),
    "Fraction": (lambda: Fraction(1, 2), 0.5, None),
    "Decimal": (lambda: Decimal("0.5"), 0.5, None),
    "largest": (lambda: -3.4e38, -3.4e38, None),
    "None": (lambda: None, 0.0, "not_a_number"),
    "text": (lambda: "1.0", 0.0, "not_a_number"),
    "list": (lambda: [1.0], 0.0, "not_a_number"),
    "complex": (lambda: 1j, 0.0, "not_a_number"),
    "nan": (lambda: float("nan"), 0.0, "not_finite"),
    "inf": (lambda: -float("inf"), 0.0, "not_finite"),
    "1e39": (lambda: 1e39, 0.0, "not_finite"),
    "10**400": (lambda: 10**400, 0.0, "not_finite"),
    "10**5000": (lambda: 10**5000, 0.0, "not_finite"),
    "AssertionError": (lambda: _raise(AssertionError()), 0.0, "raised"),
    "OSError": (lambda: Path("/nowhere").read_bytes(), 0.0, "raised"),
    "TimeoutError": (lambda: _raise(TimeoutError()), 0.0, "raised"),
    "RecursionError": (_recurse, 0.0, "raised"),
    "SyntaxError": (lambda: compile("1 +", "", "eval"), 0.0, "raised"),
    "sys.exit": (lambda: sys.exit(3), 0.0, "raised"),
    "KeyboardInterrupt": (lambda: _raise(KeyboardInterrupt()), 0.0, "raised"),
    "CancelledError": (lambda: _raise(asyncio.CancelledError()), 0.0, "raised"),
    "GeneratorExit": (lambda: _raise(GeneratorExit()), 0.0, "raised"),
    "OwnError": (lambda: _raise(OwnError()), 0.0, "raised"),
    "os._exit": (lambda: os._exit(0), 0.0, "died"),
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), 0.0, "died"),
    "killpg": (lambda: os.killpg(0, signal.SIGKILL), 0.0, "died"),
    "closes all files": (lambda: os.closerange(0, 100), 0.0, "died"),
    "leaves a process and dies": (lambda: _leave_behind(lambda: os._exit(1)), 0.0, "died"),
    "hangs": (lambda: time.sleep(1000), 0.0, "timeout"),
    "leaves a process and hangs": (lambda: _leave_behind(lambda: time.sleep(1000)), 0.0, "timeout"),
    "fork": (lambda: 0.75 if os.fork() else 0.5, 0.75, None),
    "alarm": (_bounded_by_alarm, 0.5, None),
    "alarm left behind": (lambda: _with_alarm(0.2, 0.5), 0.5, None),
    "SIGTERM": (lambda: [os.kill(os.getpid(), signal.SIGTERM), 1.0][1], 1.0, None),
    "SIGINT": (lambda: [os.kill(os.getpid(), signal.SIGINT), 1.0][1], 1.0, None),
    "ends what it starts": (_ends_what_it_starts, 1.0, None),
    "own event loop": (lambda: asyncio.run(asyncio.sleep(0, 0.5)), 0.5, None),
    "writes everywhere": (lambda: [os.write(1, b"x" * 100), print("y" * 100), 0.5][2], 0.5, None),
}
"""Response text -> what the verifier does, the reward, and the kind of failure."""


def judge(text: str, answer: str) -> Any:
    return ACTIONS[text][0]()


async def judge_later(text: str) -> Any:
    await asyncio.sleep(0.001)
    return ACTIONS[text][0]()


async def report(
    text: str, answer: str, prompt: str, *, row: dict[str, Any], finish_reason: str, num_tokens: int
) -> int:
    """Raise with everything that this process knows."""
    heavy = [name for name in ("torch", "megatron", "transformers", "pydantic") if name in sys.modules]
    rank = [name for name in os.environ if name in ("RANK", "WORLD_SIZE")]
    main_thread = _with_alarm(0.0, 0.0) == 0.0
    raise ValueError(repr((text, answer, prompt, row, finish_reason, num_tokens, heavy, rank, main_thread)))


def wait_for_file(text: str, answer: str) -> float:
    """Return once a file exists that is made while this verdict is awaited."""
    while not Path(text).exists():
        time.sleep(0.001)
    return 1.0

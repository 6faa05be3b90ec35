"""Verifiers as users write them, good and bad."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from megacov.rewards.verifiers.sum_pairs import sum_pairs

FAULT_VARIABLE = "MEGACOV_VERIFIER_FAULT"

_num_calls = 0


def not_a_number(text: str, answer: str) -> float:
    return float("nan")


def huge(text: str, answer: str) -> float:
    return 1e300


def near_the_limit(text: str, answer: str) -> float:
    """Finite, as is the advantage that it makes; what a loss makes of that need not be."""
    return 3e38 if len(text) % 2 else 0.0


def length(text: str, answer: str) -> float:
    """A reward that always differs within a group."""
    return float(len(text))


def odd_length(text: str, answer: str) -> float:
    """A reward that differs within most groups of an untrained policy, but not in all."""
    return float(len(text) % 2)


def one(text: str, answer: str) -> float:
    """A reward that teaches nothing."""
    return 1.0


def sum_pairs_with_fault(text: str, answer: str) -> Any:
    """The verifier of the sum-pairs task, but for a fault that the environment names: "kind after mark often".

    From call number `after` of a process on, it goes wrong on a response that scores 0, and makes the file `mark`. Then
    it goes wrong on no other ("once"), or on all others, also in new processes ("always").
    """
    global _num_calls
    _num_calls += 1
    reward = sum_pairs(text, answer)
    kind, after, mark, often = os.environ.get(FAULT_VARIABLE, "none 0 / once").split()
    is_due = often == "always" if Path(mark).exists() else _num_calls > int(after)
    if reward == 0.0 and is_due:
        Path(mark).touch()
        if kind == "hangs":
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
            time.sleep(1000)
        if kind == "dies":
            os._exit(0)
        return "nonsense"
    return reward


def sum_pairs_by_name(text: str, prompt: str, row: dict[str, Any], finish_reason: str, *, num_tokens: int) -> float:
    """The verifier of the sum-pairs task from other values than text and answer."""
    assert row["prompt"] == prompt and finish_reason in ("stop", "length")
    assert num_tokens >= max(1, len(text))
    return sum_pairs(text, prompt.removesuffix("="))


def takes_its_time(text: str, answer: str) -> float:
    """Take as many seconds as the response says, or end the process."""
    if text == "exit":
        os._exit(0)
    time.sleep(float(text))
    return float(answer)


def takes_cpu_time(text: str, answer: str) -> float:
    """Take as many seconds of CPU time as the response says."""
    end = time.thread_time() + float(text)
    while time.thread_time() < end:
        pass
    return float(answer)

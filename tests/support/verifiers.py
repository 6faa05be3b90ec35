"""Verifiers as users write them, good and bad."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

from megacov.rewards.sum_pairs import sum_pairs

FAULT_VARIABLE = "MEGACOV_VERIFIER_FAULT"

_num_calls = 0
_num_faults = 0


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


def one(text: str, answer: str) -> float:
    """A reward that teaches nothing."""
    return 1.0


def sum_pairs_with_fault(text: str, answer: str) -> Any:
    """The verifier of the sum-pairs task, but for a fault that the environment names: "after most kind".

    From call number `after` of a process on, it goes wrong on responses that score 0, at most `most` times.
    """
    global _num_calls, _num_faults
    _num_calls += 1
    reward = sum_pairs(text, answer)
    after, most, kind = os.environ.get(FAULT_VARIABLE, "0 0 none").split()
    if reward == 0.0 and _num_calls > int(after) and _num_faults < int(most):
        _num_faults += 1
        if kind == "hangs":
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
            time.sleep(1000)
        if kind == "dies":
            os._exit(0)
        return "nonsense"
    return reward

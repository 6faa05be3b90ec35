"""Verifiers of runs that are built to raise an alarm."""

from __future__ import annotations

import time

from megacov.rewards.verifiers.sum_pairs import sum_pairs

_num_calls = 0


def longest(text: str, answer: str) -> float:
    """The longer a response, the better.

    Args:
        text: response.
        answer: not looked at.

    Returns:
        Its number of characters.
    """
    del answer
    return float(len(text))


def slow_from(text: str, answer: str, *, call: int = 0, seconds: float = 0.0) -> float:
    """The verifier of the sum-pairs task, which becomes slow.

    Args:
        text: response.
        answer: sum.
        call: number of the first slow call of a process.
        seconds: time that a slow call takes longer. [s]

    Returns:
        The reward.
    """
    global _num_calls
    _num_calls += 1
    if _num_calls > call:
        time.sleep(seconds)
    return sum_pairs(text, answer)

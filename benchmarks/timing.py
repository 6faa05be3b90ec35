"""Fair timing on a machine that does other things too."""

from __future__ import annotations

import time
from collections.abc import Callable


def interleaved_ms(contenders: dict[str, Callable[[], object]], *, num_rounds: int) -> dict[str, float]:
    """Best time of each contender in milliseconds. They take turns, so that a slow moment meets all of them alike.

    Args:
        contenders: what to time, by name; the first round warms up and is not counted.
        num_rounds: turns of each.

    Returns:
        Milliseconds by name.
    """
    best = dict.fromkeys(contenders, float("inf"))
    for round_index in range(num_rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if round_index > 0:
                best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
    return best


def print_table(title: str, times_ms: dict[str, float], *, ours: str) -> None:
    """One line per contender: milliseconds, and how many times as long as ours."""
    print(f"\n{title}")
    for name, time_ms in times_ms.items():
        print(f"  {name:45s} {time_ms:9.2f} ms  {time_ms / times_ms[ours]:6.2f} x ours")

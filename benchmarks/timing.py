"""Fair timing on a machine that has other work as well."""

from __future__ import annotations

import time
from collections.abc import Callable


def interleaved_ms(contenders: dict[str, Callable[[], object]], *, num_rounds: int) -> dict[str, float]:
    """Best time of each contender. They take turns, so that a slow moment of the machine affects all of them.

    Args:
        contenders: functions to time, by name. A first round for warm-up is not counted.
        num_rounds: counted rounds.

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
    """Print a line for each contender: milliseconds, and its ratio to ours."""
    print(f"\n{title}")
    for name, time_ms in times_ms.items():
        print(f"  {name:45s} {time_ms:9.2f} ms  {time_ms / times_ms[ours]:6.2f} x ours")

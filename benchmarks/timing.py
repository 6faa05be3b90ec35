"""Fair timing on a machine that has other work as well."""

from __future__ import annotations

import time
from collections.abc import Callable


def host_ms(run: Callable[[], object]) -> float:
    """Milliseconds that a function takes on the host's clock."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def interleaved_ms(
    contenders: dict[str, Callable[[], object]],
    *,
    num_rounds: int,
    milliseconds: Callable[[Callable[[], object]], float] = host_ms,
) -> dict[str, float]:
    """Best time of each contender. They take turns, so that a slow moment of the machine affects all of them.

    Args:
        contenders: functions to time, by name. A first round for warm-up is not counted.
        num_rounds: counted rounds.
        milliseconds: runs a function and returns the time that it took.

    Returns:
        Milliseconds by name.
    """
    best = dict.fromkeys(contenders, float("inf"))
    for round_index in range(num_rounds + 1):
        for name, run in contenders.items():
            time_ms = milliseconds(run)
            if round_index > 0:
                best[name] = min(best[name], time_ms)
    return best


def print_table(title: str, times_ms: dict[str, float], *, ours: str) -> None:
    """Print a line for each contender: milliseconds, and its ratio to ours."""
    print(f"\n{title}")
    for name, time_ms in times_ms.items():
        print(f"  {name:45s} {time_ms:9.2f} ms  {time_ms / times_ms[ours]:6.2f} x ours")

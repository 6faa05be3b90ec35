"""Fair timing on a machine that has other work as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median


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
) -> dict[str, list[float]]:
    """Times of each contender. They take turns, so that a slow moment of the machine affects all of them.

    Args:
        contenders: functions to time, by name. A first round for warm-up is not counted.
        num_rounds: counted rounds.
        milliseconds: runs a function and returns the time that it took.

    Returns:
        Milliseconds of each round, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_index in range(num_rounds + 1):
        for name, run in contenders.items():
            time_ms = milliseconds(run)
            if round_index > 0:
                times[name].append(time_ms)
    return times


def ratio(times_ms: Mapping[str, Sequence[float]], name: str, *, ours: str) -> float:
    """Median of the ratios of a contender's time to ours, round by round."""
    return median(theirs / own for theirs, own in zip(times_ms[name], times_ms[ours], strict=True))


def print_table(title: str, times_ms: Mapping[str, Sequence[float]], *, ours: str) -> None:
    """Print a line for each contender: median, smallest and largest time, and the median of its ratios to ours."""
    print(f"\n{title}")
    for name, times in times_ms.items():
        spread = f"({min(times):.2f} to {max(times):.2f})"
        print(f"  {name:45s} {median(times):9.2f} ms  {spread:22s} {ratio(times_ms, name, ours=ours):6.2f} x ours")


def print_goals(times_ms: Mapping[str, Sequence[float]], goals: Mapping[str, float], *, ours: str) -> None:
    """Print whether each contender takes so many times as long as ours; nothing for one that was skipped."""
    for name, goal in goals.items():
        if name in times_ms:
            found = ratio(times_ms, name, ours=ours)
            print(f"  goal: {name} at least {goal:g} x ours: {found:.2f} x, {'met' if found >= goal else 'NOT MET'}")

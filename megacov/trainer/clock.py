"""Measures the phases of a step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.distributed import ProcessGroup

from megacov.launch.heartbeat import computing
from megacov.parallel.collectives import all_reduce_max
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.peak_memory import peak_bytes, restart_peak
from megacov.types import RolloutBatch


class StepClock:
    """Wall-clock seconds of one step by phase, and the peak of its memory, on this rank."""

    def __init__(self) -> None:
        """Start the clock, and the peak of memory anew."""
        restart_peak()
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = defaultdict(float)
        self._paused_at: float | None = None

    def pause(self) -> None:
        """Stop the time of the step until `resume`."""
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        """Go on, if the step's time was stopped."""
        if self._paused_at is not None:
            self.started += time.perf_counter() - self._paused_at
            self._paused_at = None

    @contextmanager
    def time(self, phase: str, *, has_deadlines: bool = False) -> Iterator[None]:
        """Add the time spent inside to a phase of the step.

        Args:
            phase: logged as `perf/<phase>_s`.
            has_deadlines: whether every wait inside has a deadline of its own. Otherwise the launcher takes a rank that
                makes no progress here for hung.
        """
        start = time.perf_counter()
        with nullcontext() if has_deadlines else computing(phase):
            yield
        self.seconds[phase] += time.perf_counter() - start

    def metrics(self, batch: RolloutBatch, groups: ParallelGroups) -> dict[str, float]:
        """Seconds and throughput on this rank, and the largest peak of memory of all ranks.

        Collectives: control: MAX of a float64.

        Args:
            batch: rollout batch of the step.
            groups: process groups of this rank.

        Returns:
            `perf/*`.
        """
        step_s = time.perf_counter() - self.started
        tokens_per_s = int((batch.prompt_lengths + batch.response_lengths).sum()) / step_s
        return {
            **{f"perf/{name}_s": seconds for name, seconds in self.seconds.items()},
            "perf/step_s": step_s,
            "perf/tokens_per_s": tokens_per_s,
            "perf/tokens_per_s_per_rank": tokens_per_s / groups.world_size,
            "perf/memory_bytes": _largest(peak_bytes(), group=groups.control),
        }


def _largest(value: float, *, group: ProcessGroup | None) -> float:
    return float(all_reduce_max(torch.tensor(value, dtype=torch.float64), group=group))

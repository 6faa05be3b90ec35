"""Steps and samples of a run, one step in memory at a time, and the way from one sample that passes to the next."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from megacov.errors import DataError
from megacov.monitor.sample_filter import SampleFilter
from megacov.monitor.samples import ShownSample, read_samples, sample_files

_PATIENCE_S = 1.0
"""How long a search goes on at least."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedStep:
    """Responses of one step, and a sentence for each thing that could not be read."""

    step: int
    samples: tuple[ShownSample, ...]
    problems: tuple[str, ...]

    def passing(self, kept: SampleFilter) -> list[int]:
        """Places of the responses that a filter lets through."""
        return [i for i, sample in enumerate(self.samples) if kept.passes(sample)]


class RunSamples:
    """The steps whose samples a run has, and the samples of one of them."""

    def __init__(self, run: Path) -> None:
        """List the steps; their files are read only when they are asked for.

        Args:
            run: run folder.

        Raises:
            DataError: there is no such folder, or it has no samples.
        """
        self.run = run
        self.steps: tuple[int, ...] = ()
        self._loaded: LoadedStep | None = None
        self.refresh()

    def refresh(self) -> None:
        """List the steps again, and forget the samples of the last one: the run may have written more."""
        try:
            steps = tuple(sample_files(self.run))
        except OSError as error:
            raise DataError(f"The samples of {self.run} cannot be listed: {error.strerror}.") from error
        if not self.run.is_dir():
            raise DataError(f"{self.run} is not a folder: give the folder of a run.")
        if not steps:
            raise DataError(
                f"{self.run} has no file samples/step_*.jsonl: it has not finished a step, monitor.samples_per_step is "
                "0, or this is not the folder of a run."
            )
        self.steps, self._loaded = steps, None

    def load(self, step: int) -> LoadedStep:
        """Read the samples of a step, unless they are those that were read last."""
        if self._loaded is None or self._loaded.step != step:
            problems: list[str] = []
            samples = tuple(read_samples(self.run, {step}, on_problem=problems.append))
            # Names within the run: a line of a terminal has no room for more.
            self._loaded = LoadedStep(
                step, samples, tuple(each.replace(f"{self.run}{os.sep}", "") for each in problems)
            )
        return self._loaded


class Browser:
    """The sample that is looked at, and the way to others that pass the filter.

    Each way returns a sentence where it leads nowhere, and else nothing.
    """

    def __init__(self, run: RunSamples, kept: SampleFilter, *, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Look at the first sample that passes in the newest step that has one.

        Args:
            run: its steps.
            kept: which samples to show.
            should_stop: asked between files of a long search; true ends it.

        Raises:
            DataError: no sample passes, or none can be read.
        """
        self.run, self.kept = run, kept
        self._should_stop = should_stop
        self.loaded = LoadedStep(run.steps[-1], (), ())
        self.index = 0
        if self._search(self._positions(len(run.steps) - 1, -1)):
            what = f"passes {kept}: ask for less." if str(kept) else "can be read."
            raise DataError(" ".join((f"No sample of {run.run} {what}", *run.load(run.steps[-1]).problems[:1])))

    @property
    def sample(self) -> ShownSample:
        """The sample that is looked at."""
        return self.loaded.samples[self.index]

    @property
    def position(self) -> int:
        """Place of its step among the steps of the run; where the file is gone, that of the next one."""
        return sum(step < self.loaded.step for step in self.run.steps)

    def move(self, by: int) -> str:
        """Go to the next (1) or previous (-1) sample that passes, on into other steps."""
        passing = [i for i in self.loaded.passing(self.kept) if (i > self.index if by > 0 else i < self.index)]
        if passing:
            self.index = passing[0] if by > 0 else passing[-1]
            return ""
        return self._search(self._positions(self._next_position(by), by), from_end=by < 0)

    def move_step(self, by: int) -> str:
        """Go to the first sample that passes in the next (1) or previous (-1) step that has one."""
        return self._search(self._positions(self._next_position(by), by))

    def set_filter(self, kept: SampleFilter) -> str:
        """Show other samples: this one if it passes, else the nearest later one, else the nearest earlier one.

        If none passes, the filter stays as it was.
        """
        before, self.kept = self.kept, kept
        if kept.passes(self.sample) or not self.move(1) or not (why := self.move(-1)):
            return ""
        self.kept = before
        return why if why.startswith("Stopped") else "No sample passes that filter: it is left as it was."

    def reload(self) -> str:
        """Read the folder and this step again, and stay at this sample if it is still there."""
        num_before = len(self.run.steps)
        try:
            self.run.refresh()
        except DataError as error:
            return str(error)
        num_new = len(self.run.steps) - num_before
        new = f"{len(self.run.steps)} steps, {num_new} more than before." if num_new > 0 else "Read again."
        loaded = self.run.load(self.loaded.step)
        if not loaded.samples:
            return f"{new} The file of step {self.loaded.step} is gone or empty; this is what it held."
        self.loaded, self.index = loaded, min(self.index, len(loaded.samples) - 1)
        return new

    def _next_position(self, by: int) -> int:
        steps, here = self.run.steps, self.position
        is_there = here < len(steps) and steps[here] == self.loaded.step
        return here + by if is_there or by < 0 else here

    def _positions(self, first: int, by: int) -> Iterable[int]:
        return range(first, len(self.run.steps) if by > 0 else -1, by)

    def _search(self, positions: Iterable[int], *, from_end: bool = False) -> str:
        begun = time.monotonic()
        for position in positions:
            step = self.run.steps[position]
            if not self.kept.has_step(step):
                continue
            loaded = self.run.load(step)
            if passing := loaded.passing(self.kept):
                self.loaded, self.index = loaded, passing[-1 if from_end else 0]
                return ""
            # Keys that were typed ahead end no short search, or a key held down would lead nowhere.
            if time.monotonic() - begun > _PATIENCE_S and self._should_stop():
                return f"Stopped at step {step}: none passes up to there."
        return "No further sample passes the filter." if str(self.kept) else "There is no further sample."

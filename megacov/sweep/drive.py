"""The loop of a sweep: start what is due, watch what runs, record what is over."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from megacov.sweep.folder import Outcome, SweepFolder
from megacov.sweep.setting import Setting, SweepRun

Tell = Callable[[SweepRun, str], None]
"""Called with a run and what has happened to it."""


class Place(Protocol):
    """Where runs train: this machine, or SLURM."""

    begins: str
    """What happens to a run that this place has been given, in words."""

    def start(self, runs: Sequence[SweepRun]) -> None:
        """Start runs, or continue them."""

    def poll(self, run: SweepRun) -> Outcome | None:
        """How a run ended; None while it trains or waits."""

    def stop(self, run: SweepRun) -> float:
        """End a run; returns how long it ran. [s]"""

    def leave(self, is_impatient: Callable[[], bool]) -> None:
        """End what runs so that it can continue later, or leave it running where it needs no sweep."""


class Source(Protocol):
    """Where runs come from: a list, or a study of Optuna's."""

    def next(self) -> SweepRun | None:
        """The next run to start; None while there is none."""

    def note(self, run: SweepRun, outcome: Outcome) -> None:
        """Learn how a run ended."""

    def is_hopeless(self, run: SweepRun) -> bool:
        """Whether a run that trains may end now, because of what it has shown so far."""


class FixedRuns:
    """Runs that are known from the start."""

    def __init__(self, runs: Iterable[SweepRun], settings: Sequence[Setting]) -> None:
        """Take the runs in their order.

        Args:
            runs: all runs.
            settings: settings of the runs, in the order of the table.
        """
        self._due = deque(runs)
        self.settings = settings
        self.problems: Mapping[str, str] = {}
        """Nothing, as impossible settings are refused before the sweep begins."""

    def next(self) -> SweepRun | None:
        """The next run to start; None when all have been."""
        return self._due.popleft() if self._due else None

    def note(self, run: SweepRun, outcome: Outcome) -> None:
        """Nothing to learn."""

    def is_hopeless(self, run: SweepRun) -> bool:
        """Never."""
        return False


class CaughtSignals:
    """The signals of `noted_signals`: the first asks all runs to leave, and a second Ctrl-C is impatience."""

    def __init__(self) -> None:
        """None has come yet."""
        self.first: int | None = None
        self.is_impatient = False

    def note(self, number: int) -> None:
        """Note a signal."""
        self.is_impatient |= self.first is not None and number == signal.SIGINT
        self.first = self.first or number


def drive(
    source: Source,
    place: Place,
    folder: SweepFolder,
    caught: CaughtSignals,
    *,
    at_once: int,
    poll_s: float,
    tell: Tell,
    waits: bool = True,
) -> None:
    """Run a sweep until it is over, or until a signal is caught.

    Args:
        source: where runs come from.
        place: where they train.
        folder: folder of the sweep, held by this process.
        caught: signals; after one, runs leave the place and nothing is recorded of them.
        at_once: most runs that train at the same time.
        poll_s: seconds between two looks.
        tell: called with each event.
        waits: whether to wait for runs; otherwise only what is over now is recorded, and what is due is started.

    Raises:
        DataError: the disk refuses a file.
    """
    running: dict[str, SweepRun] = {}
    try:
        while caught.first is None:
            _start_due(source, place, folder, running, at_once=at_once, tell=tell)
            if not running:
                return
            time.sleep(poll_s if waits else 0.0)
            has_changed = False
            for run in list(running.values()):
                outcome = place.poll(run)
                if outcome is None and source.is_hopeless(run):
                    outcome = Outcome("pruned", seconds=place.stop(run))
                if outcome is not None:
                    has_changed = True
                    del running[run.name]
                    folder.write_outcome(run, outcome)
                    source.note(run, outcome)
                    tell(run, f"{outcome.kind}{f' ({outcome.code}): {outcome.reason}' * (outcome.kind == 'failed')}")
            if not (waits or has_changed):
                return
    finally:
        place.leave(lambda: caught.is_impatient)


def _start_due(
    source: Source,
    place: Place,
    folder: SweepFolder,
    running: dict[str, SweepRun],
    *,
    at_once: int,
    tell: Tell,
) -> None:
    due = []
    while len(running) < at_once and (run := source.next()) is not None:
        outcome = folder.read_outcome(run)
        if outcome is not None:
            source.note(run, outcome)
        else:
            running[run.name] = run
            due.append(run)
    if due:
        place.start(due)
        for run in due:
            tell(run, place.begins)

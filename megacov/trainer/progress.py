"""What a run shows while it trains: one bar on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SHOWN = (
    ("reward", "reward/mean", ".3f"),
    ("entropy", "entropy/token_mean", ".3f"),
    ("selected", "selection/count", ".0f"),
    ("grad", "policy/grad_norm", ".2f"),
    ("mismatch", "rollout/mismatch_k1_abs", ".1e"),
    ("s", "perf/step_s", ".2f"),
)


def describe(metrics: Mapping[str, float]) -> str:
    """The numbers of a step that a reader watches.

    Args:
        metrics: by tag.

    Returns:
        "name value" pairs, of the tags that are there.
    """
    return "  ".join(f"{name} {metrics[tag]:{spec}}" for name, tag, spec in _SHOWN if tag in metrics)


class ProgressReport:
    """Shows steps as they end. Used on one rank."""

    def __init__(self, name: str, *, num_steps: int, choice: str) -> None:
        """Nothing is shown before `__enter__`.

        Args:
            name: of the run.
            num_steps: of the run.
            choice: "auto" (a bar where stderr is a terminal), "on" or "off".
        """
        self._name, self._num_steps = name, num_steps
        self._bar: Progress | None = None
        if choice == "on" or (choice == "auto" and sys.stderr.isatty()):
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            text = TextColumn("{task.fields[numbers]}", markup=False)
            self._bar = Progress(TextColumn(name, markup=False), *columns, text, console=Console(stderr=True))
            self._task = self._bar.add_task(name, total=num_steps, numbers="")

    def __enter__(self) -> ProgressReport:
        """Draw the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step.

        Args:
            step: steps finished so far.
            metrics: of the last one.
        """
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=describe(metrics))
        else:
            print(f"{self._name}  step {step}/{self._num_steps}  {describe(metrics)}", flush=True)

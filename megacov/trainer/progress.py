"""What a run shows while it trains: bars on a terminal, elsewhere one plain line a step and one a minute between."""

from __future__ import annotations

import sys
import time
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

# A log says this often how far a long rollout has come.
_LINE_EVERY_S = 60.0


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

    def __init__(self, name: str, *, num_steps: int, num_groups: int, choice: str) -> None:
        """Nothing is shown before `__enter__`.

        Args:
            name: of the run.
            num_steps: of the run.
            num_groups: of one rollout batch.
            choice: "auto" (a bar where stderr is a terminal), "on" or "off".
        """
        self._name, self._num_steps, self._num_groups = name, num_steps, num_groups
        self._line_at = time.monotonic() + _LINE_EVERY_S
        self._bar: Progress | None = None
        if choice == "on" or (choice == "auto" and sys.stderr.isatty()):
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            text = TextColumn("{task.fields[numbers]}", markup=False)
            label = TextColumn("{task.description}", markup=False)
            self._bar = Progress(label, *columns, text, console=Console(stderr=True))
            self._steps_task = self._bar.add_task(name, total=num_steps, numbers="")
            self._groups_task = self._bar.add_task("sampling", total=num_groups, numbers="groups", visible=False)

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

    def group_sampled(self, num_sampled: int) -> None:
        """Show that the rollout has come one group further. Any thread may call this.

        Args:
            num_sampled: groups of this rollout so far; refilled ones count too.
        """
        if self._bar is not None:
            total = max(num_sampled, self._num_groups)
            self._bar.update(self._groups_task, completed=num_sampled, total=total, visible=True)
        elif time.monotonic() > self._line_at:
            print(f"{self._name}  sampling: {num_sampled} of {self._num_groups} groups", flush=True)
            self._line_at = time.monotonic() + _LINE_EVERY_S

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step.

        Args:
            step: steps finished so far.
            metrics: of the last one.
        """
        self._line_at = time.monotonic() + _LINE_EVERY_S
        if self._bar is not None:
            self._bar.update(self._groups_task, visible=False)
            self._bar.update(self._steps_task, completed=step, numbers=describe(metrics))
        else:
            print(f"{self._name}  step {step}/{self._num_steps}  {describe(metrics)}", flush=True)

"""Shows the progress of a run: a line per step, below them bars on a terminal, or a line a minute in long rollouts."""

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

# Interval between lines on a long rollout.
_LINE_EVERY_S = 60.0


def describe(metrics: Mapping[str, float]) -> str:
    """The main numbers of a step as "name value" pairs; absent tags are left out."""
    return "  ".join(f"{name} {metrics[tag]:{spec}}" for name, tag, spec in _SHOWN if tag in metrics)


class ProgressReport:
    """Shows finished steps. Only rank 0 has one."""

    def __init__(self, name: str, *, num_steps: int, num_groups: int, choice: str) -> None:
        """Prepare a report, which shows nothing before `__enter__`.

        Args:
            name: name of the run.
            num_steps: steps of the whole run.
            num_groups: groups in one rollout batch.
            choice: "auto" (a bar if stderr is a terminal), "on" or "off".
        """
        self._name, self._num_steps, self._num_groups = name, num_steps, num_groups
        self._line_at = time.monotonic() + _LINE_EVERY_S
        self._bar: Progress | None = None
        self._is_on_terminal = sys.stderr.isatty()
        if choice == "on" or (choice == "auto" and self._is_on_terminal):
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            text = TextColumn("{task.fields[unit]}", markup=False)
            label = TextColumn("{task.description}", markup=False)
            self._bar = Progress(label, *columns, text, console=Console(stderr=True))
            self._steps_task = self._bar.add_task(name, total=num_steps, unit="steps")
            self._groups_task = self._bar.add_task("sampling", total=num_groups, unit="groups", visible=False)

    def __enter__(self) -> ProgressReport:
        """Start drawing the bar, if there is one."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop drawing and leave the bar on the screen."""
        bar = self._shown_bar()
        if bar is not None:
            bar.stop()

    def group_sampled(self, num_sampled: int) -> None:
        """Show that the rollout has one more group. Any thread may call this.

        Args:
            num_sampled: groups of this rollout so far, refilled ones included.
        """
        bar = self._shown_bar()
        if bar is not None:
            total = max(num_sampled, self._num_groups)
            bar.update(self._groups_task, completed=num_sampled, total=total, visible=True)
        elif time.monotonic() > self._line_at:
            print(f"{self._name}  sampling: {num_sampled} of {self._num_groups} groups", flush=True)
            self._line_at = time.monotonic() + _LINE_EVERY_S

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step.

        Args:
            step: number of finished steps.
            metrics: metrics of the last one, by tag.
        """
        self._line_at = time.monotonic() + _LINE_EVERY_S
        line = f"{self._name}  step {step}/{self._num_steps}  {describe(metrics)}"
        bar = self._shown_bar()
        if bar is not None:
            bar.update(self._groups_task, visible=False)
            bar.update(self._steps_task, completed=step)
            bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def _shown_bar(self) -> Progress | None:
        """The bar, as long as its terminal is open; lines then follow, in the run's log file."""
        bar = self._bar
        if bar is not None and self._is_on_terminal and not sys.stderr.isatty():
            bar.stop()
            print(file=sys.stderr)  # off a terminal, a stopped bar does not end its line
            bar = self._bar = None
        return bar

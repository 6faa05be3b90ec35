"""The results of a sweep: values by run and setting, a table, a CSV file, and the best setting as a YAML file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from megacov.config import dump_config
from megacov.config.sweep import EntropyObjective, EvaluationObjective, Objective, SweepSection
from megacov.config.sweep_search import OptunaSearch
from megacov.monitor.compare import seed_interval
from megacov.monitor.visible_text import visible
from megacov.sweep.folder import Outcome, SweepFolder
from megacov.sweep.setting import Setting, SweepRun
from megacov.sweep.value import RunValue, counted_values, mean_value, value_of


@dataclass(frozen=True)
class RunResult:
    """A run, how it ended (None while it has not), and what it is worth (None unless it is done or pruned)."""

    run: SweepRun
    outcome: Outcome | None
    value: RunValue | None

    @property
    def state(self) -> str:
        """One of done, failed, pruned, and waiting for a run that is not over."""
        return self.outcome.kind if self.outcome else "waiting"


@dataclass(frozen=True)
class SettingResult:
    """A setting and its runs, one for each seed that it has been given so far."""

    setting: Setting
    runs: tuple[RunResult, ...]
    value: float | None
    """Mean over its seeds by the objective; None unless all of them are done and have a value."""

    def values(self) -> list[RunValue]:
        """Values of the runs that are done."""
        return [each.value for each in self.runs if each.state == "done" and each.value is not None]

    def mean(self, what: str) -> float | None:
        """Mean of `value`, `reward` or `entropy` over the runs that are done; None without any."""
        found = [getattr(each, what) for each in self.values() if getattr(each, what) is not None]
        return float(np.mean(found)) if found else None


def read_results(
    sweep: SweepSection, folder: SweepFolder, settings: Sequence[Setting], values: dict[str, RunValue] | None = None
) -> list[SettingResult]:
    """Read what has come of each setting.

    Args:
        sweep: the sweep.
        folder: its folder.
        settings: settings in the order of the table.
        values: values of runs that are over, by name, to read them once only; the others are added.

    Returns:
        Results in the order of the settings.
    """
    known = {} if values is None else values
    is_study = isinstance(sweep.search, OptunaSearch)
    results = []
    for setting in settings:
        runs: list[RunResult] = []
        for seed in sweep.seeds:
            run = SweepRun(setting, seed)
            outcome = folder.read_outcome(run)
            if outcome is None and is_study and any(each.state in ("failed", "pruned") for each in runs):
                break  # the trial is over, and its later seeds are never trained
            is_read = outcome is not None and outcome.kind in ("done", "pruned")
            if is_read and run.name not in known:
                known[run.name] = value_of(run.directory, sweep.objective)
            runs.append(RunResult(run, outcome, known[run.name] if is_read else None))
        found = [each.value.value for each in runs if each.state == "done" and each.value is not None]
        whole = [value for value in found if value is not None]
        is_whole = len(whole) == len(sweep.seeds)
        results.append(SettingResult(setting, tuple(runs), mean_value(whole, sweep.objective) if is_whole else None))
    return results


def find_best(results: Sequence[SettingResult]) -> SettingResult | None:
    """The setting of largest value, the earlier of equal ones; None if no setting has a value."""
    return max((each for each in results if each.value is not None), key=lambda each: each.value or 0.0, default=None)


def describe(objective: Objective) -> str:
    """Name an objective in a few words."""
    if isinstance(objective, EntropyObjective):
        return f"entropy at reward {objective.reward:g}"
    if isinstance(objective, EvaluationObjective):
        return f"{objective.set} {objective.score}"
    return "reward, all steps" if objective.last_steps is None else f"reward, last {objective.last_steps} steps"


def render_table(sweep: SweepSection, results: Sequence[SettingResult]) -> Table:
    """Render a row for each setting, the best one in bold.

    Args:
        sweep: the sweep.
        results: what `read_results` returns.

    Returns:
        The table.
    """
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=f"Best: largest {describe(sweep.objective)}, mean over seeds. +-: 95 % interval over seeds."
        f" Reward and entropy (nats): means over the last steps.",
        caption_justify="left",
    )
    table.add_column("setting", overflow="fold", min_width=10)
    shows_changes = isinstance(sweep.search, OptunaSearch)  # other settings have names that say it
    if shows_changes:
        table.add_column("with", overflow="fold")
    for heading in ("seeds", describe(sweep.objective), "reward", "entropy"):
        table.add_column(heading, justify="right")
    table.add_column("state")
    best = find_best(results)
    for each in results:
        values = [found.value for found in each.values() if found.value is not None]
        interval = seed_interval(counted_values(values, sweep.objective))
        shown = _value(mean_value(values, sweep.objective) if values else None, sweep.objective)
        if interval is not None:
            shown += f" +- {(interval.high - interval.low) / 2:.2g}"
        cells = (_cell(each.mean("reward")), _cell(each.mean("entropy")))
        seeds = f"{len(values)} of {len(each.runs)}"
        names = [each.setting.name, *([escape(visible(_changes(each.setting)))] if shows_changes else [])]
        table.add_row(*names, seeds, shown, *cells, _state(each), style="bold" if each is best else "")
    return table


def _changes(setting: Setting) -> str:
    short = {key.rpartition(".")[2]: value for key, value in setting.changes.items()}
    named = short if len(short) == len(setting.changes) else setting.changes
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in named.items()
    )


def _state(result: SettingResult) -> str:
    counts: dict[str, int] = {}
    for each in result.runs:
        counts[each.state] = counts.get(each.state, 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _value(value: float | None, objective: Objective) -> str:
    """A value by the objective; an entropy at a reward that was not reached is none, but what the reward lacks."""
    is_short = value is not None and value <= 0 and isinstance(objective, EntropyObjective)
    return f"not reached, {value:.4g}" if is_short else _cell(value)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def render_csv(sweep: SweepSection, results: Sequence[SettingResult]) -> str:
    """Write a row for each run: its setting, what it changes, its seed, state and values.

    Args:
        sweep: the sweep.
        results: what `read_results` returns.

    Returns:
        CSV with a line of column names; values that are not known are empty.
    """
    text = io.StringIO()
    keys = sweep.searched_keys
    writer = csv.writer(text, lineterminator="\n")
    names = ("setting", "seed", "state", "value", "reward", "entropy", "steps", "seconds", "exit_code", "reason")
    writer.writerow([*names, *keys])
    for result in results:
        changes = [_plain(result.setting.changes.get(key, "")) for key in keys]
        for each in result.runs:
            value, outcome = each.value or RunValue(None), each.outcome
            end = ["", "", ""] if outcome is None else [f"{outcome.seconds:.1f}", outcome.code, outcome.reason]
            numbers = [value.value, value.reward, value.entropy, value.steps or None]
            shown = ["" if number is None else repr(number) for number in numbers]
            writer.writerow([result.setting.name, each.run.seed, each.state, *shown, *end, *changes])
    return text.getvalue()


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else json.dumps(value)


def render_best(sweep: SweepSection, best: SettingResult) -> str:
    """Write the best setting as a configuration that `megacov train` takes.

    Args:
        sweep: the sweep.
        best: its best setting.

    Returns:
        YAML of the whole configuration, with a name and a folder of its own, and the first seed.
    """
    name = f"{sweep.name}_best"
    run = best.setting.config.run.model_copy(update={"name": name, "directory": Path("runs", name)})
    seeds = f"mean over {len(best.runs)} seed{'s' * (len(best.runs) > 1)}"
    lines = [
        f"# The best setting of the sweep {sweep.name}: {best.setting.name}.",
        f"# {describe(sweep.objective)}: {_value(best.value, sweep.objective)}, {seeds}.",
        *(f"# {key}: {json.dumps(value)}" for key, value in best.setting.changes.items()),
    ]
    return "\n".join(lines) + "\n" + dump_config(best.setting.config.model_copy(update={"run": run}))


def failures(results: Sequence[SettingResult]) -> Mapping[str, str]:
    """Why runs failed, by name of the run."""
    return {
        each.run.name: f"({each.outcome.code}) {each.outcome.reason}"
        for result in results
        for each in result.runs
        if each.outcome is not None and each.outcome.kind == "failed"
    }

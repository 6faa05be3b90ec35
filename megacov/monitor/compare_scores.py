"""Reads pass@k of a run's last evaluations, from TensorBoard's files or from the reports beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megacov.json_text import JsonError, parse_json
from megacov.monitor.event_reader import read_history

PassAtK = tuple[str, int]
"""Name of the set of problems, and k."""

_EVENTS, _REPORTS = Path("tensorboard", "evaluation"), "evaluations"
_TAG = re.compile(r"eval/(.+)/pass@(\d+)$")
_STEP = re.compile(r"step_(\d+)")


def read_pass_at_k(run: Path) -> tuple[dict[PassAtK, float], tuple[str, ...]]:
    """Read the newest pass@k of each set and each k.

    Args:
        run: run folder.

    Returns:
        Scores in [0, 1] by set and k; and one sentence for each file that could not be read whole.

    Raises:
        DataError: a folder cannot be listed.
    """
    newest: dict[PassAtK, tuple[int, float]] = {}
    problems: list[str] = []
    for step, key, value in (*_reported(run, problems), *_logged(run, problems)):
        if key not in newest or step >= newest[key][0]:
            newest[key] = step, value
    return {key: value for key, (_, value) in newest.items()}, tuple(problems)


def common_scores(runs: Sequence[Mapping[PassAtK, float]]) -> tuple[tuple[str, ...], list[int]]:
    """What can be compared between runs: sets of problems that all of them have been scored on, with the same k.

    Args:
        runs: scores of each run.

    Returns:
        Sets that have all values of k of the one with the most, and these values in ascending order; both are empty
        where no set has two values in all runs.
    """
    common = set.intersection(*(set(run) for run in runs)) if runs else set()
    by_set = {name: {k for each, k in common if each == name} for name in sorted({name for name, _ in common})}
    most = max(by_set.values(), key=len, default=set())
    if len(most) < 2:
        return (), []
    return tuple(name for name, ks in by_set.items() if ks >= most), sorted(most)


def _logged(run: Path, problems: list[str]) -> Iterator[tuple[int, PassAtK, float]]:
    """Points of TensorBoard's files."""
    if not any((run / _EVENTS).glob("*tfevents*")):
        return
    history = read_history(run / _EVENTS)
    problems += history.problems
    for tag, series in history.scalars.items():
        if match := _TAG.match(tag):
            finite = np.flatnonzero(np.isfinite(series.values))
            if len(finite):
                yield int(series.steps[finite[-1]]), (match[1], int(match[2])), float(series.values[finite[-1]])


def _reported(run: Path, problems: list[str]) -> Iterator[tuple[int, PassAtK, float]]:
    """Points of the reports that evaluations of the run and of its checkpoints leave."""
    folder = run / _REPORTS
    for path in sorted([*folder.glob("step_*.json"), *folder.glob("step_*/results.json")]):
        step = _STEP.match(path.relative_to(folder).parts[0])
        try:
            sets = parse_json(path.read_bytes())["sets"]
            found = [(each, _scores(sets[each])) for each in sets]
        except (OSError, JsonError, KeyError, TypeError, ValueError) as error:
            problems.append(f"{path} is no report of an evaluation ({type(error).__name__}): it does not count.")
            continue
        for name, scores in found:
            yield from ((int(step[1]), (name, k), value) for k, value in scores.items() if step)


def _scores(of_set: Mapping[str, Any]) -> dict[int, float]:
    scores = of_set["scores"]
    return {
        int(name.removeprefix("pass@")): float(scores[name]["value"]) for name in scores if name.startswith("pass@")
    }

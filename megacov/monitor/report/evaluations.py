"""Scores with intervals from RUN/evaluations: those of training, and those of `megacov evaluate RUN`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megacov.json_text import JsonError, read_json
from megacov.monitor.report.facts import Score

_DURING_TRAINING = re.compile(r"step_([0-9]{1,15})\.json")
_AFTERWARDS = re.compile(r"step_([0-9]{1,15})-.*")


def read_scores(run: Path, *, on_problem: Callable[[str], object]) -> list[Score]:
    """Read the results of all evaluations that have ended. Files that cannot be read are named and passed over.

    Args:
        run: run folder.
        on_problem: called with a sentence for each file that cannot be read.

    Returns:
        Scores in rising order of the steps.
    """
    scores: list[Score] = []
    try:
        found = sorted(_result_files(run / "evaluations"))
    except OSError as error:
        on_problem(f"{run / 'evaluations'} cannot be listed: {error.strerror}.")
        return []
    for step, path in found:
        try:
            scores += _scores(read_json(path), step)
        except OSError as error:
            on_problem(f"{path} cannot be read: {error.strerror}.")
        except JsonError as error:
            on_problem(f"{path} cannot be read: {error}.")
        except (KeyError, TypeError, ValueError, AttributeError):
            on_problem(f"{path} is not the result of an evaluation by this version of megacov.")
    return scores


def _result_files(folder: Path) -> Iterator[tuple[int, Path]]:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if (name := _DURING_TRAINING.fullmatch(path.name)) is not None:
            yield int(name[1]), path
        elif (name := _AFTERWARDS.fullmatch(path.name)) is not None and (path / "results.json").is_file():
            yield int(name[1]), path / "results.json"


def _scores(results: Any, step: int) -> list[Score]:
    return [
        Score(
            step=step,
            name=name,
            metric=metric,
            value=float(score["value"]),
            low=float(score["low"]),
            high=float(score["high"]),
            problems=int(each["problems"]),
        )
        for name, each in results["sets"].items()
        for metric, score in each["scores"].items()
    ]

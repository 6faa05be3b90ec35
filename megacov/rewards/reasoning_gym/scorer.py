"""Scores an answer by the scorer of its task."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

from megacov.errors import ConfigError, DataError
from megacov.rewards.reasoning_gym.expressions import may_be_scored
from megacov.rewards.reasoning_gym.rows import Row
from megacov.rewards.reasoning_gym.tasks import check_task, installed_version


def create_dataset(task: str, settings: Mapping[str, Any], *, size: int, seed: int) -> Any:
    """Create the data set of a task, which makes its rows and scores answers.

    Args:
        task: name of the task.
        settings: settings of the task that differ from its defaults.
        size: number of rows.
        seed: seed of the rows.

    Returns:
        reasoning-gym's data set.

    Raises:
        ConfigError: the task does not exist or is refused, its settings do not fit, or reasoning-gym is missing.
    """
    check_task(task)
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    known = sorted({field.name for field in dataclasses.fields(DATASETS[task][1])} - {"seed", "size"})
    for name in settings:
        if name not in known:
            raise ConfigError(f"The task {task} has no setting {name!r}; it has {', '.join(known)}.")
    try:
        return reasoning_gym.create_dataset(task, size=size, seed=seed, **settings)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"The settings {json.dumps(dict(settings))} do not fit the task {task}: {reason}.") from error


def score(response: str, answer: str, row: Row) -> float:
    """Score a response.

    Args:
        response: answer of the response, without blanks around it.
        answer: right answer of the row.
        row: the row.

    Returns:
        The task's own score, in [0, 1]; 0 for a blank response, for one that the scorer may not run, and for one that
        it fails on although it takes the right answer.

    Raises:
        ConfigError: the task does not exist or is refused, or reasoning-gym is not installed.
        DataError: the row was written by another version, or the scorer does not take its right answer.
    """
    scorer = _scorer_of(row, answer)
    if not response or not may_be_scored(row.task, response):
        return 0.0
    try:
        return _call(scorer, response, answer, row)
    except Exception:  # noqa: BLE001 - scorers fail on junk in many ways
        check_right_answer(answer, row)
        return 0.0


def check_right_answer(answer: str, row: Row) -> None:
    """Check that the scorer gives 1 to the right answer of a row.

    Args:
        answer: right answer.
        row: the row.

    Raises:
        ConfigError: as `score`.
        DataError: it does not, or the row was written by another version.
    """
    scorer, stripped = _scorer_of(row, answer), answer.strip()
    try:
        reward = _call(scorer, stripped, answer, row)
        problem = f"gives {reward:g} in place of 1"
    except Exception as error:  # noqa: BLE001 - as above
        reward, problem = 0.0, f"raises {type(error).__name__}"
    if not stripped or reward != 1.0:
        raise DataError(
            f"The scorer of {row.task} {problem} for {_short(answer)}, the right answer of a row: write the file "
            "again with megacov make-prompts."
        )


def _call(scorer: Any, response: str, answer: str, row: Row) -> float:
    entry = {"question": row.question, "answer": answer, "metadata": row.metadata}
    # A scorer may print what it thinks of a wrong answer, and sympy warns of it.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reward = float(scorer.score_answer(response, entry))
    return 0.0 if math.isnan(reward) else min(max(reward, 0.0), 1.0)


def _scorer_of(row: Row, answer: str) -> Any:
    if row.version != installed_version():
        raise DataError(
            f"A row was written with reasoning-gym {row.version} and {installed_version()} is installed, whose "
            "scorers may differ: write the file again with megacov make-prompts, or install the other version."
        )
    # Some scorers run texts of the row as Python, not only those of the response.
    integrand = row.metadata.get("integrand", "") if isinstance(row.metadata, dict) else ""
    for text in (answer, integrand):
        if not may_be_scored(row.task, str(text).strip()):
            raise DataError(
                f"A row of {row.task} holds {_short(str(text))}, which its scorer would run as Python: write the file "
                "again with megacov make-prompts."
            )
    return _scorer(row.task, json.dumps(row.settings, sort_keys=True))


@functools.lru_cache(maxsize=64)
def _scorer(task: str, settings: str) -> Any:
    return create_dataset(task, json.loads(settings), size=1, seed=0)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")

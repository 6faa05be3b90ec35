"""Scores an answer by the scorer of its task."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import warnings
from typing import Any

from megacov.errors import DataError
from megacov.rewards.reasoning_gym.expressions import may_be_scored
from megacov.rewards.reasoning_gym.rows import Row
from megacov.rewards.reasoning_gym.tasks import check_task, installed_version


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
    scorer = _scorer(row.task, json.dumps(row.settings, sort_keys=True), row.version)
    if not response or not may_be_scored(row.task, response):
        return 0.0
    entry = {"question": row.question, "answer": answer, "metadata": row.metadata}
    _check_what_is_run(row, answer)
    try:
        return _call(scorer, response, entry)
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
    scorer = _scorer(row.task, json.dumps(row.settings, sort_keys=True), row.version)
    _check_what_is_run(row, answer)
    stripped = answer.strip()
    try:
        reward = _call(scorer, stripped, {"question": row.question, "answer": answer, "metadata": row.metadata})
    except Exception as error:  # noqa: BLE001 - as above
        raise DataError(
            f"The scorer of {row.task} raises {type(error).__name__} on the right answer of a row, {_short(answer)}: write "
            "the file again with megacov make-prompts."
        ) from error
    if not stripped or reward != 1.0:
        raise DataError(
            f"The scorer of {row.task} gives {reward:g} to the right answer of a row, {_short(answer)}, in place of 1: write "
            "the file again with megacov make-prompts."
        )


def _call(scorer: Any, response: str, entry: dict[str, Any]) -> float:
    # A scorer may print what it thinks of a wrong answer, and sympy warns of it.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return min(max(float(scorer.score_answer(response, entry)), 0.0), 1.0)


def _check_what_is_run(row: Row, answer: str) -> None:
    """Refuse a row whose own texts the scorer would run as a program."""
    integrand = row.metadata.get("integrand", "") if isinstance(row.metadata, dict) else ""
    for text in (answer, integrand):
        if not isinstance(text, str) or not may_be_scored(row.task, text.strip()):
            raise DataError(
                f"A row of {row.task} holds {_short(str(text))}, which its scorer would run as Python: write the file again "
                "with megacov make-prompts."
            )


@functools.lru_cache(maxsize=64)
def _scorer(task: str, settings: str, version: str) -> Any:
    check_task(task)
    if version != installed_version():
        raise DataError(
            f"A prompt file was written with reasoning-gym {version} and {installed_version()} is installed, whose scorers "
            "may differ: write the file again with megacov make-prompts, or install the other version."
        )
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(task, size=1, seed=0, **json.loads(settings))
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(f"The settings {settings} of a row do not fit the task {task}: {error}.") from error


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")

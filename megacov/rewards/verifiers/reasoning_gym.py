"""Verifier of the tasks of reasoning-gym, by each task's own scorer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megacov.rewards.reasoning_gym.rows import read_row
from megacov.rewards.reasoning_gym.scorer import check_right_answer, score
from megacov.rewards.reasoning_gym.tasks import all_tasks


def reasoning_gym(
    text: str, answer: str, *, row: Mapping[str, Any], graded: bool = False, tag: str | None = None
) -> float:
    """Judge a response to a row that `megacov make-prompts` wrote.

    Blanks around the answer do not count, and a response on which the scorer fails is wrong, as a blank one is.

    Args:
        text: response.
        answer: right answer.
        row: the whole row, which holds task, settings and what the scorer needs.
        graded: whether a partly right answer gets the task's own partial credit.
        tag: name of a tag, such as "answer": the answer is what stands in its last pair, as in <answer>42</answer>, and
            a response without it is wrong. None: the whole response is the answer.

    Returns:
        1.0 for a right answer, otherwise 0.0; with `graded` the task's own score, in [0, 1].

    Raises:
        ConfigError: the task is refused or does not exist, or reasoning-gym is not installed.
        DataError: the row has a defect, or was written by another version of reasoning-gym.
    """
    reward = score(_in_tag(text, tag).strip(), answer, read_row(row))
    return reward if graded or reward == 1.0 else 0.0


def _in_tag(text: str, tag: str | None) -> str:
    if tag is None:
        return text
    before, closing, _ = text.rpartition(f"</{tag}>")
    _, opening, inner = before.rpartition(f"<{tag}>")
    return inner if closing and opening else ""


def _check_answer(answer: str, row: Mapping[str, Any]) -> None:
    """Raises DataError if the task's scorer does not give 1 to the right answer of a row."""
    check_right_answer(answer, read_row(row))


def _prepare() -> None:
    """Import reasoning-gym, which takes a second."""
    all_tasks()


reasoning_gym.check_answer = _check_answer  # type: ignore[attr-defined]
reasoning_gym.prepare = _prepare  # type: ignore[attr-defined]

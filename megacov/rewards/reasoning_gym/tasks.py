"""The tasks of reasoning-gym, and those of them that are refused because their scorer cannot be trusted."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata

from megacov.errors import ConfigError

TESTED_VERSION = "0.1.25"
"""Version of reasoning-gym whose tasks REFUSED is about."""

_NO_ANSWER = "its rows hold no right answer, so that nothing shows whether its scorer finds one"
REFUSED: dict[str, str] = {
    "boxnet": _NO_ANSWER,
    "codeio": "its right answers are the output of programs, some of which depend on more than the seed",
    "coin_flip": "its scorer gives 1 to each prefix of the right number, such as 0",
    "composite": "it is a mixture of tasks and none itself; give each task a file, and mix them by data.sources",
    "game_of_life_halting": "its scorer gives 1 to every text",
    "propositional_logic": _NO_ANSWER,
    "puzzle24": "its scorer gives 1 to any four numbers that make 24, also to others than those of the prompt",
    "rubiks_cube": _NO_ANSWER,
    "rush_hour": _NO_ANSWER,
}
"""Reason why each of these tasks is refused."""

ANSWER_IN_METADATA: dict[str, str] = {"graph_color": "possible_answer"}
"""Where the rows of a task hold a right answer, as JSON, though the library names none: the key in their metadata."""


def installed_version() -> str:
    """Version of reasoning-gym; raises ConfigError if it is not installed."""
    try:
        return importlib.metadata.version("reasoning-gym")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            "The package reasoning-gym is not installed: install it with pip install 'megacov[gym]'."
        ) from error


@functools.cache
def all_tasks() -> tuple[str, ...]:
    """Names of all tasks of the installed package, the refused ones included; imports it, which takes a second."""
    installed_version()
    from reasoning_gym.factory import DATASETS

    return tuple(sorted(DATASETS))


def check_task(task: str) -> None:
    """Check that a task exists and can be trusted.

    Args:
        task: name of the task, such as "chain_sum".

    Raises:
        ConfigError: there is no such task, or it is refused.
    """
    if task in REFUSED:
        raise ConfigError(f"The reasoning-gym task {task} is refused: {REFUSED[task]}.")
    if task not in all_tasks():
        close = difflib.get_close_matches(task, all_tasks(), n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else "docs/reasoning_gym.md lists the tasks."
        raise ConfigError(f"reasoning-gym {installed_version()} has no task {task!r}: {advice}")

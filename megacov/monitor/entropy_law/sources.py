"""Reads what the law is fitted to: a run of megacov, a folder of TensorBoard events, or a table."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacov.config.yaml_text import parse_yaml, read_yaml
from megacov.errors import ConfigError, DataError
from megacov.monitor.csv_history import read_csv
from megacov.monitor.entropy_law.conditions import read_conditions
from megacov.monitor.entropy_law.curves import BEST_REWARD_TAGS, KNOWN_TAGS, Curve, find_curve
from megacov.monitor.entropy_law.verdict import Reason
from megacov.monitor.event_reader import read_history
from megacov.monitor.history import History

_CONFIG_TEXT = "run/config"
_EVALUATION = "evaluation"


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One run, ready to be fitted.

    name: its path, as it was given.
    curve: entropy and reward.
    conditions: reasons that its settings give; None if they are not known.
    problems: one sentence for each file that could not be read whole.
    """

    name: str
    curve: Curve
    conditions: tuple[Reason, ...] | None
    problems: tuple[str, ...]


def read_source(
    path: Path, *, entropy_tag: str | None = None, reward_tag: str | None = None, step_column: str | None = None
) -> Source:
    """Read entropy, reward and what is known of the settings.

    Args:
        path: folder of a run, folder of event files or one event file, or a CSV file.
        entropy_tag: tag or column of the entropy; None for a known one.
        reward_tag: tag or column of the reward or score; None for a known one.
        step_column: column of the steps in a CSV file; None for a known one.

    Returns:
        The run.

    Raises:
        DataError: nothing can be read there, or a tag is missing.
    """
    is_run = (path / "config.yaml").is_file() and (path / "tensorboard").is_dir()
    if path.suffix == ".csv":
        history = read_csv(path, step_column=step_column)
    else:
        history = _read_events(path / "tensorboard" if is_run else path, entropy_tag, reward_tag)
    try:
        curve = find_curve(history.scalars, source=str(path), entropy_tag=entropy_tag, reward_tag=reward_tag)
    except DataError as error:
        raise DataError(" ".join((str(error), *history.problems))) from error
    config = _read_config(path / "config.yaml") if is_run else _parse_config(history)
    conditions = None if config is None else read_conditions(config)
    return Source(str(path), curve, conditions, history.problems)


def _read_events(path: Path, *given: str | None) -> History:
    known = {tag for program in KNOWN_TAGS.values() for tags in program for tag in tags}
    tags = {*known, *BEST_REWARD_TAGS.values(), _CONFIG_TEXT, *(tag for tag in given if tag is not None)}
    history = _read_with_evaluation(path, tags)
    try:
        find_curve(history.scalars, source=str(path), entropy_tag=given[0], reward_tag=given[1])
    except DataError:
        return _read_with_evaluation(path, None)  # so that the message names the tags that there are
    return history


def _read_with_evaluation(path: Path, tags: set[str] | None) -> History:
    """A folder's metrics, and those that evaluations of a run of megacov have written below it."""
    own = read_history(path, tags=tags)
    if not any((path / _EVALUATION).glob("*tfevents*")):
        return own
    scores = read_history(path / _EVALUATION, tags=tags)
    return History({**scores.scalars, **own.scalars}, own.texts, (*own.problems, *scores.problems))


def _read_config(path: Path) -> dict[str, Any] | None:
    try:
        config = read_yaml(path, source=str(path))
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): restore the file that `megacov train` wrote there."
        ) from error
    return _if_settings(config)


def _parse_config(history: History) -> dict[str, Any] | None:
    """The configuration that a run of megacov writes beside its scalars."""
    text = history.texts.get(_CONFIG_TEXT)
    if text is None:
        return None
    try:
        config = parse_yaml(textwrap.dedent(text), source=_CONFIG_TEXT)
    except ConfigError:
        return None
    return _if_settings(config)


def _if_settings(config: object) -> dict[str, Any] | None:
    """The configuration, unless it lacks what steers entropy: defaults in its place would say that nothing does."""
    return config if isinstance(config, dict) and isinstance(config.get("algorithm"), dict) else None

"""Reads a run folder for its report. Each part that is missing or damaged is named, and the others are shown."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from megacov.config.yaml_text import MAX_YAML_BYTES, parse_yaml
from megacov.errors import ConfigError, DataError
from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms import AlarmSettings, find_alarms
from megacov.monitor.alarms_file import ALARMS_NAME, read_alarms
from megacov.monitor.event_reader import read_history
from megacov.monitor.history import History
from megacov.monitor.report.evaluations import read_scores
from megacov.monitor.report.facts import RunFacts
from megacov.monitor.report.samples import gather_samples
from megacov.monitor.token_table import read_token_tables

_CONFIG, _EVENTS, _EVALUATION_EVENTS = Path("config.yaml"), Path("tensorboard"), Path("tensorboard", "evaluation")
_NOTHING = History({}, {}, ())


def gather_facts(run: Path, *, max_tokens: int) -> RunFacts:
    """Read everything that a report shows of a run. The run may be training meanwhile.

    Args:
        run: run folder.
        max_tokens: tokens of the samples that the report holds, at most.

    Returns:
        The facts, with a sentence for each thing that could not be read.

    Raises:
        DataError: the folder is missing, or is not that of a run.
    """
    if not run.is_dir():
        raise DataError(f"{run} is not a folder: give the folder of a run, such as runs/<name>.")
    if not ((run / _CONFIG).is_file() or (run / _EVENTS).is_dir()):
        raise DataError(
            f"{run} has neither config.yaml nor tensorboard: give the folder of a run, such as runs/<name>."
        )
    problems: list[str] = []
    config = _read_config(run, problems)
    settings = _parse(config, run / _CONFIG, problems) if config else None
    history = _read_history(run / _EVENTS, problems, is_expected=True)
    evaluation = _read_history(run / _EVALUATION_EVENTS, problems, is_expected=False)
    scores = read_scores(run, on_problem=problems.append)
    tables = read_token_tables(run, on_problem=problems.append)
    samples = gather_samples(run, max_tokens=max_tokens)
    alarms, source = _alarms(run, history, settings, problems)
    return RunFacts(
        name=_name(run, settings),
        written=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        config=config,
        settings=settings,
        history=history,
        evaluation=evaluation,
        scores=scores,
        samples=samples,
        alarms=alarms,
        alarms_source=source,
        token_tables=tables,
        problems=[*problems, *samples.problems],
    )


def _read_config(run: Path, problems: list[str]) -> str:
    try:
        with (run / _CONFIG).open(encoding="utf-8", errors="backslashreplace") as file:
            return file.read(MAX_YAML_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        problems.append(f"{run / _CONFIG} cannot be read: {error.strerror}.")
        return ""


def _parse(text: str, source: Path, problems: list[str]) -> Mapping[str, Any] | None:
    try:
        settings = parse_yaml(text, source=str(source))
    except ConfigError as error:
        problems.append(str(error))
        return None
    return settings if isinstance(settings, Mapping) else None


def _name(run: Path, settings: Mapping[str, Any] | None) -> str:
    """The run's own name; that of its folder if config.yaml has none."""
    name = _get(settings, "run", "name")
    return name if isinstance(name, str) and name else run.resolve().name


def _alarms(
    run: Path, history: History, settings: Mapping[str, Any] | None, problems: list[str]
) -> tuple[Sequence[Alarm], str]:
    """The alarms that the run has raised, or those that its metrics raise now; and which of the two they are."""
    try:
        if (run / ALARMS_NAME).is_file():
            alarms, num_damaged = read_alarms(run)
            if num_damaged:
                problems.append(f"{run / ALARMS_NAME} has {num_damaged} damaged lines.")
            return alarms, "As the run raised them while it trained."
    except OSError as error:
        problems.append(f"{run / ALARMS_NAME} cannot be read: {error.strerror}.")
    found = find_alarms(history, _alarm_settings(settings))
    return found, f"Looked for in the metrics now: the run has no {ALARMS_NAME}, which a newer megacov begins."


def _alarm_settings(settings: Mapping[str, Any] | None) -> AlarmSettings:
    """The thresholds of the run, and the usual ones where it has none."""
    thresholds = _get(settings, "monitor", "alarms")
    known = {each.name for each in fields(AlarmSettings)} - {"updates_per_rollout"}
    values = {
        name: value
        for name, value in (thresholds.items() if isinstance(thresholds, Mapping) else ())
        if name in known and type(value) in (int, float)
    }
    updates = _get(settings, "batch", "updates_per_rollout")
    return AlarmSettings(**values, updates_per_rollout=updates if type(updates) is int else None)


def _get(settings: Mapping[str, Any] | None, *names: str) -> Any:
    value: Any = settings
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _read_history(folder: Path, problems: list[str], *, is_expected: bool) -> History:
    try:
        if not is_expected and not folder.is_dir():
            return _NOTHING
        history = read_history(folder)
    except PermissionError as error:
        problems.append(f"{folder} cannot be read: {error.strerror}.")
        return _NOTHING
    except DataError as error:
        problems.append(str(error))
        return _NOTHING
    problems += history.problems
    return history

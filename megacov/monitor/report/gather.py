"""Reads a run folder for its report. Each part that is missing or damaged is named, and the others are shown."""

from __future__ import annotations

import time
from pathlib import Path

from megacov.config.yaml_text import read_yaml
from megacov.errors import ConfigError, DataError
from megacov.monitor.event_reader import read_history
from megacov.monitor.history import History
from megacov.monitor.report.evaluations import read_scores
from megacov.monitor.report.facts import RunFacts
from megacov.monitor.report.samples import gather_samples

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
    history = _read_history(run / _EVENTS, problems, is_expected=True)
    evaluation = _read_history(run / _EVALUATION_EVENTS, problems, is_expected=False)
    scores = read_scores(run, on_problem=problems.append)
    samples = gather_samples(run, max_tokens=max_tokens)
    return RunFacts(
        name=_name(run, config),
        written=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        config=config,
        history=history,
        evaluation=evaluation,
        scores=scores,
        samples=samples,
        problems=[*problems, *samples.problems],
    )


def _read_config(run: Path, problems: list[str]) -> str:
    try:
        return (run / _CONFIG).read_text(encoding="utf-8", errors="backslashreplace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        problems.append(f"{run / _CONFIG} cannot be read: {error.strerror}.")
        return ""


def _name(run: Path, config: str) -> str:
    """The run's own name; that of its folder if config.yaml has none."""
    try:
        section = read_yaml(run / _CONFIG, source="config.yaml").get("run") if config else None
    except ConfigError:
        section = None
    name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) and name else run.resolve().name


def _read_history(folder: Path, problems: list[str], *, is_expected: bool) -> History:
    if not is_expected and not folder.is_dir():
        return _NOTHING
    try:
        history = read_history(folder)
    except DataError as error:
        problems.append(str(error))
        return _NOTHING
    problems += history.problems
    return history

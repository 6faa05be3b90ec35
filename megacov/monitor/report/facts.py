"""Everything that a report shows of a run, read before the page is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megacov.monitor.alarm import Alarm
from megacov.monitor.history import History
from megacov.monitor.report.samples import Samples
from megacov.monitor.token_table import TokenTable


@dataclass(frozen=True, slots=True)
class Score:
    """One score of one evaluation with its 95 % interval, in the score's own unit.

    step: step of the weights that were scored.
    problems: number of problems in the set.
    """

    step: int
    name: str
    metric: str
    value: float
    low: float
    high: float
    problems: int


@dataclass(frozen=True, slots=True, eq=False)
class RunFacts:
    """One run.

    written: when the report was made, in words.
    config: text of config.yaml; "" if there is none.
    settings: what it holds, as plain values; None if that is not known.
    history: metrics of training.
    evaluation: metrics of evaluations.
    scores: of all evaluations, by step.
    alarms_source: where the alarms come from, as a sentence.
    token_tables: of the whole vocabulary, by step.
    problems: a sentence for each thing that could not be read.
    """

    name: str
    written: str
    config: str
    settings: Mapping[str, Any] | None
    history: History
    evaluation: History
    scores: Sequence[Score]
    samples: Samples
    alarms: Sequence[Alarm]
    alarms_source: str
    token_tables: Sequence[TokenTable]
    problems: Sequence[str]

"""Everything that a report shows of a run, read before the page is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megacov.monitor.history import History
from megacov.monitor.report.samples import Samples


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
    history: metrics of training.
    evaluation: metrics of evaluations.
    scores: of all evaluations, by step.
    problems: a sentence for each thing that could not be read.
    """

    name: str
    written: str
    config: str
    history: History
    evaluation: History
    scores: Sequence[Score]
    samples: Samples
    problems: Sequence[str]

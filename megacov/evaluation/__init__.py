"""Evaluation of a model on sets of problems: sampling, verdicts, scores with their intervals, and reports."""

from __future__ import annotations

from megacov.evaluation.records import Answered, Response
from megacov.evaluation.sample import Judge, Sampling, sample_problems
from megacov.evaluation.set_scores import SetScores, score_set
from megacov.evaluation.suite import find_suite, load_suite

__all__ = [
    "Answered",
    "Judge",
    "Response",
    "Sampling",
    "SetScores",
    "find_suite",
    "load_suite",
    "sample_problems",
    "score_set",
]

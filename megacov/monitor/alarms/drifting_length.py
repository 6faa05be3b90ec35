"""Responses become longer or shorter at a great pace, or many of them are cut."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.settings import AlarmSettings
from megacov.monitor.alarms.window import before, episodes, held, series_of, trailing_mean, trailing_median
from megacov.monitor.history import History

_WINDOW = 5
_APART = 20
_HOLD = 3
_LENGTH_TAG, _TRUNCATED_TAG = "rollout/length_mean", "rollout/truncated_fraction"


def drifting_length(history: History, settings: AlarmSettings) -> Iterator[Alarm]:
    """The median length of 5 logged steps is `length_factor` times that of 20 before, or the reverse; or
    `truncation_share` of the responses of 5 logged steps were cut.

    Args:
        history: metrics of a run.
        settings: thresholds.

    Yields:
        The alarm, once an episode of either kind.
    """
    yield from _drift(history, settings.length_factor)
    yield from _truncation(history, settings.truncation_share)


def _drift(history: History, factor: float) -> Iterator[Alarm]:
    length = series_of(history, _LENGTH_TAG)
    level = trailing_median(length.values, _WINDOW)
    earlier = before(level, _APART)
    change = np.abs(np.log(np.maximum(level, 1.0) / np.maximum(earlier, 1.0)))
    for start, end in episodes(held(change >= np.log(factor), _HOLD), change < np.log(factor) / 2):
        has_grown = level[start] > earlier[start]
        yield Alarm(
            "drifting_length",
            int(length.steps[start]),
            f"{_LENGTH_TAG} went from {earlier[start]:.0f} to {level[start]:.0f} tokens in {_APART} logged steps",
            "responses fill up without a better answer" if has_grown else "responses give up reasoning",
            "look at RUN/samples, change algorithm.aggregation, whose denominator favours long or short responses, "
            + ("or set rewards.overlong_buffer" if has_grown else "or lower optimizer.lr"),
            None if end is None else int(length.steps[end]),
        )


def _truncation(history: History, share: float) -> Iterator[Alarm]:
    truncated = series_of(history, _TRUNCATED_TAG)
    level = trailing_mean(truncated.values, _WINDOW)
    for start, end in episodes(held(level >= share, _HOLD), level < 0.7 * share):
        yield Alarm(
            "drifting_length",
            int(truncated.steps[start]),
            f"{_TRUNCATED_TAG} is {level[start]:.0%}, the mean of {_WINDOW} logged steps",
            "a cut response has no answer, so the reward punishes length and not mistakes",
            "raise rollout.max_response_length, or leave cut responses out of the loss with rollout.mask_overlong",
            None if end is None else int(truncated.steps[end]),
        )

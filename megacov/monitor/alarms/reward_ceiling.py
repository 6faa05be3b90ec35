"""The reward has reached the ceiling of the entropy law."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.settings import AlarmSettings
from megacov.monitor.alarms.window import (
    at_common_steps,
    episodes,
    first_median,
    held,
    series_of,
    trailing_mean,
    trailing_trend,
)
from megacov.monitor.headline_tags import REWARD_TAG
from megacov.monitor.history import History, Series

_WINDOW = 10
_TREND = 20
_FIRST = 5
_HOLD = 5
_LAW_TAGS = ("law/ceiling", "law/ceiling_low", "law/ceiling_high")


def reward_ceiling(history: History, settings: AlarmSettings) -> Iterator[Alarm]:
    """For 5 logged steps the mean reward of 10 has been at the law's ceiling, within 5 % of all that the law lets the
    run gain, and a line through the last 20 rewards does not rise.

    The ceiling counts once its 95 % interval is narrower than a quarter of that gain. It is what the run knew at each
    step, from its tags, so that later steps cannot change an earlier verdict.

    Args:
        history: metrics of a run.
        settings: thresholds.

    Yields:
        The alarm, once an episode.
    """
    del settings
    reward = series_of(history, REWARD_TAG)
    trend = trailing_trend(reward.steps, reward.values, _TREND)
    of_steps = (trailing_mean(reward.values, _WINDOW), trend.slope / np.maximum(trend.error, 1e-12))
    steps, (level, rise, ceiling, low, high) = at_common_steps(
        *(Series(reward.steps, values) for values in of_steps), *(series_of(history, tag) for tag in _LAW_TAGS)
    )
    gain = ceiling - first_median(reward.values, _FIRST)
    distance = np.abs(ceiling - level)
    is_there = (distance <= 0.05 * gain) & (rise < 2.0) & (high - low <= 0.25 * gain)
    for start, end in episodes(held(is_there, _HOLD), distance > 0.1 * gain):
        yield Alarm(
            "reward_ceiling",
            int(steps[start]),
            f"{REWARD_TAG} is {level[start]:.3g}, the mean of {_WINDOW} logged steps, and does not rise; the law's "
            f"ceiling is {ceiling[start]:.3g} ({low[start]:.3g} to {high[start]:.3g})",
            "by R = -a exp(H) + b this policy gains no more, because it has no entropy left to spend",
            "end the run and keep its best checkpoint, or begin again with algorithm.selection.name kl_cov or "
            "clip_cov, harder data or a larger model",
            None if end is None else int(steps[end]),
        )

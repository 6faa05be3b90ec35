"""The reward has reached the ceiling of the entropy law."""

from __future__ import annotations

from collections.abc import Iterator

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.settings import AlarmSettings
from megacov.monitor.alarms.window import at_common_steps, episodes, held, series_of, trailing_mean
from megacov.monitor.headline_tags import REWARD_TAG
from megacov.monitor.history import History, Series

_WINDOW = 10
_HOLD = 5
_CEILING_TAG, _RMSE_TAG = "law/ceiling", "law/rmse"


def reward_ceiling(history: History, settings: AlarmSettings) -> Iterator[Alarm]:
    """The mean reward of 10 logged steps is within the law's own error of its ceiling b - a, 5 logged steps in a row.

    The law is what the run knew at each step, from its tags, so that later steps cannot change an earlier verdict.

    Args:
        history: metrics of a run.
        settings: thresholds.

    Yields:
        The alarm, once an episode.
    """
    del settings
    reward = series_of(history, REWARD_TAG)
    mean_reward = Series(reward.steps, trailing_mean(reward.values, _WINDOW))
    law = (series_of(history, tag) for tag in (_CEILING_TAG, _RMSE_TAG))
    steps, (level, ceiling, error) = at_common_steps(mean_reward, *law)
    gap = ceiling - level
    for start, end in episodes(held(gap <= error, _HOLD), gap > 2 * error):
        yield Alarm(
            "reward_ceiling",
            int(steps[start]),
            f"{REWARD_TAG} is {level[start]:.3g}, the mean of {_WINDOW} logged steps, and {_CEILING_TAG} is "
            f"{ceiling[start]:.3g}, with an error of {error[start]:.2g}",
            "by R = -a exp(H) + b this policy gains no more, because it has no entropy left to spend",
            "end the run and keep its best checkpoint, or begin again with algorithm.selection.name kl_cov or "
            "clip_cov, harder data or a larger model",
            None if end is None else int(steps[end]),
        )

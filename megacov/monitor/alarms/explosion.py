"""The entropy has risen far above where it began."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.settings import AlarmSettings
from megacov.monitor.alarms.window import episodes, held, series_of, trailing_median
from megacov.monitor.headline_tags import ENTROPY_TAG
from megacov.monitor.history import History

_WINDOW = 5
_FIRST = 5
_HOLD = 3
_LEAST_RISE = 0.5  # nats: a multiple of almost nothing is still almost nothing


def explosion(history: History, settings: AlarmSettings) -> Iterator[Alarm]:
    """The median of the last 5 entropies exceeds the lowest of the first 5 by `explosion_factor` and by 0.5 nats.

    Args:
        history: metrics of a run.
        settings: thresholds.

    Yields:
        The alarm, once an episode.
    """
    entropy = series_of(history, ENTROPY_TAG)
    begun = float(np.min(entropy.values[:_FIRST], initial=np.inf))
    limit = max(begun * settings.explosion_factor, begun + _LEAST_RISE)
    level = trailing_median(entropy.values, _WINDOW)
    is_over = level < (begun + limit) / 2
    for start, end in episodes(held(level > limit, _HOLD), is_over):
        yield Alarm(
            "explosion",
            int(entropy.steps[start]),
            f"{ENTROPY_TAG} is {level[start]:.3g} nats, the median of {_WINDOW} logged steps, and began at {begun:.3g}",
            "the policy turns to noise, and what it has learned is lost",
            "lower algorithm.entropy_coef, algorithm.loss.kl_coef, algorithm.selection.ratio or optimizer.lr",
            None if end is None else int(entropy.steps[end]),
        )

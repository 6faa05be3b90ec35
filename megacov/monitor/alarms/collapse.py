"""The entropy is about to fall below a floor, or is below it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.settings import AlarmSettings
from megacov.monitor.alarms.window import episodes, held, series_of, trailing_trend
from megacov.monitor.headline_tags import ENTROPY_TAG
from megacov.monitor.history import History

_WINDOW = 15
_HOLD = 5


def collapse(history: History, settings: AlarmSettings) -> Iterator[Alarm]:
    """A line through the logarithm of the last 15 entropies falls, and meets the floor within `collapse_within` steps.

    Entropy falls exponentially where a policy sharpens at a constant rate, hence the logarithm. The alarm is over when
    the line stands above the floor by half and, as it goes, stays above it for twice `collapse_within` steps.

    Args:
        history: metrics of a run.
        settings: thresholds.

    Yields:
        The alarm, once an episode.
    """
    entropy = series_of(history, ENTROPY_TAG)
    floor = settings.entropy_floor
    # An entropy of 0 has no logarithm; one far below the floor makes no difference.
    logs = np.log(np.maximum(entropy.values, floor * 1e-3))
    trend = trailing_trend(entropy.steps, logs, _WINDOW)
    distance = trend.level - np.log(floor)
    steps_left = np.divide(distance, -trend.slope, out=np.full(len(logs), np.inf), where=trend.slope < 0)
    is_near = (distance <= 0) | (trend.is_falling & (steps_left <= settings.collapse_within))
    is_over = (distance > np.log(1.5)) & (steps_left > 2 * settings.collapse_within)
    for start, end in episodes(held(is_near, _HOLD), is_over):
        value = entropy.values[start]
        when = (
            f"below the floor of {floor:g}"
            if distance[start] <= 0
            else f"and at its pace below {floor:g} in {steps_left[start]:.0f} steps"
        )
        yield Alarm(
            "collapse",
            int(entropy.steps[start]),
            f"{ENTROPY_TAG} is {value:.3g} nats {when}",
            "the policy repeats itself, groups of equal rewards give no gradient, and the reward stops rising",
            "act on covariance with algorithm.selection.name kl_cov or clip_cov, or on more tokens with a larger "
            "algorithm.selection.ratio and algorithm.loss.kl_coef; or lower optimizer.lr",
            None if end is None else int(entropy.steps[end]),
        )

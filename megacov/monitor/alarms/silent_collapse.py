"""The entropy falls while the covariance method acts on no token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.settings import AlarmSettings
from megacov.monitor.alarms.window import at_common_steps, before, episodes, series_of, trailing_mean, trailing_trend
from megacov.monitor.headline_tags import ENTROPY_TAG
from megacov.monitor.history import History

_WINDOW = 10
_COUNT_TAG = "selection/count"
# Methods that select only where something has gone too far, so that no selected token is a good sign.
_OF_OTHER_METHODS = ("policy/m2po_left_out_fraction", "policy/bapo_clip_fraction")
_LEAST_FALL = 0.1  # share of the entropy, over the window


def silent_collapse(history: History, settings: AlarmSettings) -> Iterator[Alarm]:
    """In 8 of the last 10 logged steps no token was selected, and the entropy has fallen by a tenth meanwhile.

    The alarm is over when tokens are selected in half of the last 10 logged steps again.

    Args:
        history: metrics of a run.
        settings: thresholds.

    Yields:
        The alarm, once an episode.
    """
    del settings
    if any(len(series_of(history, tag).steps) for tag in _OF_OTHER_METHODS):
        return
    entropy, count = series_of(history, ENTROPY_TAG), series_of(history, _COUNT_TAG)
    steps, (entropies, counts) = at_common_steps(entropy, count)
    idle = trailing_mean(counts == 0, _WINDOW)
    trend = trailing_trend(steps, np.log(np.maximum(entropies, 1e-9)), _WINDOW)
    fall = -trend.slope * (steps - before(steps.astype(np.float64), _WINDOW - 1))
    is_raised = (idle >= 0.8) & trend.is_falling & (fall >= _LEAST_FALL)
    for start, end in episodes(is_raised, idle <= 0.5):
        yield Alarm(
            "silent_collapse",
            int(steps[start]),
            f"{_COUNT_TAG} was 0 in {idle[start]:.0%} of {_WINDOW} logged steps, while {ENTROPY_TAG} fell to "
            f"{entropies[start]:.3g} nats",
            "the covariance method is configured and does nothing, as if algorithm.selection.name were none",
            "raise algorithm.selection.ratio; for clip_cov lower algorithm.selection.lower, because covariances shrink "
            "with the entropy",
            None if end is None else int(steps[end]),
        )

"""The rollout server's log-probs drift away from the trainer's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.settings import AlarmSettings
from megacov.monitor.alarms.window import episodes, first_median, held, series_of, trailing_median
from megacov.monitor.history import History

_WINDOW = 5
_FIRST = 10
_HOLD = 3
_TAG = "rollout/mismatch_k1_abs"


def rising_mismatch(history: History, settings: AlarmSettings) -> Iterator[Alarm]:
    """The median of the last 5 mismatches exceeds that of the first 10 by `mismatch_factor`, and `mismatch_floor`.

    Args:
        history: metrics of a run.
        settings: thresholds.

    Yields:
        The alarm, once an episode.
    """
    mismatch = series_of(history, _TAG)
    begun = first_median(mismatch.values, _FIRST)
    limit = max(begun * settings.mismatch_factor, settings.mismatch_floor)
    level = trailing_median(mismatch.values, _WINDOW)
    level[: _FIRST - 1] = np.nan  # where it began is not known earlier
    for start, end in episodes(held(level > limit, _HOLD), level < 0.7 * limit):
        yield Alarm(
            "rising_mismatch",
            int(mismatch.steps[start]),
            f"{_TAG} is {level[start]:.2g} nats, the median of {_WINDOW} logged steps, and began at {begun:.2g}",
            "the tokens are no longer drawn from the policy that is trained, which biases every gradient",
            "set algorithm.rollout_correction.level to token, lower rollout.max_staleness or optimizer.lr, or compare "
            "model.dtype and the arguments of the rollout servers",
            None if end is None else int(mismatch.steps[end]),
        )

"""Clip-Cov's band of covariance holds no token."""

from __future__ import annotations

from collections.abc import Iterator

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.settings import AlarmSettings
from megacov.monitor.alarms.window import episodes, series_of, trailing_mean
from megacov.monitor.history import History

_WINDOW = 10
_TAG = "selection/band_population"


def empty_band(history: History, settings: AlarmSettings) -> Iterator[Alarm]:
    """The band was empty in 8 of the last 10 logged steps. The alarm is over when it was empty in half of them or less.

    Args:
        history: metrics of a run.
        settings: thresholds.

    Yields:
        The alarm, once an episode.
    """
    del settings
    population = series_of(history, _TAG)
    empty = trailing_mean(population.values == 0, _WINDOW)
    for start, end in episodes(empty >= 0.8, empty <= 0.5):
        yield Alarm(
            "empty_band",
            int(population.steps[start]),
            f"{_TAG} was 0 in {empty[start]:.0%} of the last {_WINDOW} logged steps",
            "Clip-Cov has no token to draw, so nothing holds the entropy",
            "lower algorithm.selection.lower: a good bound lies between cov/top_0.2pct and cov/top_2pct, which shrink "
            "with the entropy",
            None if end is None else int(population.steps[end]),
        )

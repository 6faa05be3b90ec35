"""All alarms of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.collapse import collapse
from megacov.monitor.alarms.drifting_length import drifting_length
from megacov.monitor.alarms.empty_band import empty_band
from megacov.monitor.alarms.explosion import explosion
from megacov.monitor.alarms.kl_cov_inert import kl_cov_inert
from megacov.monitor.alarms.reward_ceiling import reward_ceiling
from megacov.monitor.alarms.rising_mismatch import rising_mismatch
from megacov.monitor.alarms.settings import AlarmSettings
from megacov.monitor.alarms.silent_collapse import silent_collapse
from megacov.monitor.alarms.stalled_phase import stalled_phase
from megacov.monitor.history import History

ALARMS: dict[str, Callable[[History, AlarmSettings], Iterator[Alarm]]] = {
    kind.__name__: kind
    for kind in (
        collapse,
        explosion,
        silent_collapse,
        kl_cov_inert,
        empty_band,
        rising_mismatch,
        drifting_length,
        reward_ceiling,
        stalled_phase,
    )
}


def find_alarms(history: History, settings: AlarmSettings) -> list[Alarm]:
    """Find all alarms that a run has raised so far.

    Longer histories of the same run give the same alarms and perhaps more: no alarm depends on a later step, except
    for `cleared`.

    Args:
        history: metrics of a run.
        settings: thresholds.

    Returns:
        The alarms by step.
    """
    found = (alarm for kind in ALARMS.values() for alarm in kind(history, settings))
    return sorted(found, key=lambda alarm: alarm.step)

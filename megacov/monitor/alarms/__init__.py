"""Alarms: pure functions of a run's history, one file a kind. docs/alarms.md explains them."""

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.find import ALARMS, find_alarms
from megacov.monitor.alarms.settings import AlarmSettings

__all__ = ["ALARMS", "Alarm", "AlarmSettings", "find_alarms"]

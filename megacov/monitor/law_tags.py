"""Tags of the entropy law while a run trains, and of alarms."""

from __future__ import annotations

from megacov.monitor.alarms import ALARMS
from megacov.monitor.tag import Tag

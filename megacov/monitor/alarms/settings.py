"""Thresholds of the alarms, as plain values. `AlarmsSection` of the configuration has the same fields and defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AlarmSettings:
    """Thresholds. docs/alarms.md explains each.

    Args:
        entropy_floor: entropy that counts as collapsed. [nats]
        collapse_within: predicted time to the floor that raises the alarm. [steps]
        explosion_factor: entropy over that of the first steps.
        mismatch_factor: mismatch over that of the first steps.
        mismatch_floor: mismatch that is too small to matter. [nats]
        length_factor: mean length over that of some steps before, or the reverse.
        truncation_share: responses that end at a length limit. [fraction]
        stall_factor: time of a phase over its median.
        updates_per_rollout: optimizer steps a rollout batch; None where it is not known.
    """

    entropy_floor: float = 0.05
    collapse_within: int = 10
    explosion_factor: float = 1.5
    mismatch_factor: float = 3.0
    mismatch_floor: float = 0.02
    length_factor: float = 2.0
    truncation_share: float = 0.5
    stall_factor: float = 5.0
    updates_per_rollout: int | None = None

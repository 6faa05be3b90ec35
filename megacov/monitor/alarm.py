"""An alarm of a run: what was seen, what it means, and which setting to change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a run's metrics warn of.

    Args:
        kind: name of the alarm, as in `monitor.end_on`.
        step: step at which it was raised.
        seen: the values that raised it, as a clause without a full stop.
        meaning: why that matters, as a clause without a full stop.
        knob: what to change, naming settings, as a clause without a full stop.
        cleared: step at which what raised it was over; None while it lasts.
    """

    kind: str
    step: int
    seen: str
    meaning: str
    knob: str
    cleared: int | None = None

    @property
    def sentence(self) -> str:
        """All of it in one line for a log."""
        return f"alarm {self.kind} at step {self.step}: {self.seen}; {self.meaning}; {self.knob}."

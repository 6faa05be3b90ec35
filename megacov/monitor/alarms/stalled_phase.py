"""A phase of the step takes far longer than it used to."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.settings import AlarmSettings
from megacov.monitor.alarms.window import at_common_steps, before, episodes, held, series_of, trailing_median
from megacov.monitor.history import History

_PAST = 20
_HOLD = 3
_STEP_TAG = "perf/step_s"
# The whole step, no time at all, or parts of a phase and means over responses, which are in the phase already.
_NO_PHASES = re.compile(r"perf/(step|tokens_per|verifier_\w+|weight_sync_\w+)_s")
_KNOBS = {
    "rollout": "look at RUN/logs of the rollout servers and at perf/verifier_call_s; raise rewards.workers, lower "
    "rewards.timeout_s or rollout.max_response_length, or set rollout.over_sample above 1",
    "weight_sync": "look at the network and at the disk of weight_sync.directory; change weight_sync.transport or "
    "weight_sync.bucket_bytes",
    "save": "look at the disk of the run; raise checkpoint.every or set checkpoint.background to true",
}
_OTHER_KNOB = "look for a slow node with `megacov doctor`; lower batch.micro_batch_tokens if memory is nearly full"


def stalled_phase(history: History, settings: AlarmSettings) -> Iterator[Alarm]:
    """In 3 logged steps in a row a phase took `stall_factor` times its median of the 20 before, and so much longer
    that a step takes half as long again.

    The alarm is over when the phase is below half of that limit, or when 20 logged steps have made it the new past.

    Args:
        history: metrics of a run.
        settings: thresholds.

    Yields:
        The alarm, once an episode of each phase.
    """
    for tag in sorted(history.scalars):
        if re.fullmatch(r"perf/\w+_s", tag) and not _NO_PHASES.fullmatch(tag):
            yield from _stall(history, tag, settings.stall_factor)


def _stall(history: History, tag: str, factor: float) -> Iterator[Alarm]:
    steps, (seconds, step_seconds) = at_common_steps(series_of(history, tag), series_of(history, _STEP_TAG))
    past = before(trailing_median(seconds, _PAST), _HOLD)
    usual_step = before(trailing_median(step_seconds, _PAST), _HOLD)
    slowest = np.maximum(factor * past, past + 0.5 * usual_step)
    for start, end in episodes(held(seconds > slowest, _HOLD), seconds < slowest / 2):
        phase = tag.removeprefix("perf/").removesuffix("_s")
        yield Alarm(
            "stalled_phase",
            int(steps[start]),
            f"{tag} is {seconds[start]:.3g} s, and was {past[start]:.3g} s in the {_PAST} logged steps before (median)",
            f"the ranks wait in {phase}",
            _KNOBS.get(phase, _OTHER_KNOB),
            None if end is None else int(steps[end]),
        )

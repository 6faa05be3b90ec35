"""Watches a run while it trains, on rank 0: the entropy law of its steps so far, how well its change of entropy is
predicted, and its alarms."""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from megacov.config import RunConfig
from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms import AlarmSettings, find_alarms
from megacov.monitor.alarms.window import at_common_steps
from megacov.monitor.alarms_file import AlarmsFile
from megacov.monitor.entropy_law import Verdict, fit, read_conditions
from megacov.monitor.event_reader import read_history
from megacov.monitor.headline_tags import ENTROPY_TAG, REWARD_TAG
from megacov.monitor.history import History, Series
from megacov.monitor.tags import TAGS
from megacov.monitor.tensorboard import MetricWriter
from megacov.monitor.theorem_agreement import OBSERVED_TAG, agreement_metrics

_FIRST_LAW_STEP = 20
# Tags that alarms and the law read.
_WATCHED = re.compile(
    r"entropy/token_mean|reward/mean|selection/(count|band_population)|policy/kl_(selected_fraction|penalty)|"
    r"rollout/(mismatch_k1_abs|length_mean|truncated_fraction)|perf/\w+_s|law/ceiling(_low|_high)?|"
    r"theorem/(observed|covariance|centred|gradient|directional)"
)


class Watch:
    """Holds the history of the run, adds `law/*` and the agreement of `theorem/*` to it, and raises alarms."""

    def __init__(self, config: RunConfig, writer: MetricWriter, *, first_step: int | None) -> None:
        """Begin with no history, or with what the run's event files hold of earlier steps.

        Args:
            config: the resolved configuration.
            writer: writes law and alarms; it has removed the steps that a resumed run repeats.
            first_step: step with which a resumed run continues; None for a new run.

        Raises:
            DataError: the event files cannot be read.
        """
        folder = config.run.directory
        self._writer = writer
        self._file = AlarmsFile(folder, first_step=first_step)
        self._conditions = read_conditions(config.model_dump(mode="json"))
        # To the server's log-probs there is a distance on the first optimizer step too.
        is_own = config.algorithm.old_log_probs == "recompute"
        self._settings = AlarmSettings(
            **config.monitor.alarms.model_dump(),
            updates_per_rollout=config.batch.updates_per_rollout if is_own else None,
        )
        self._end_on = config.monitor.end_on
        self._points: defaultdict[str, _Points] = defaultdict(_Points)
        self._refusals: set[str] = set()
        self.ending: Alarm | None = None
        if first_step is not None:
            self._read_earlier(folder / "tensorboard", first_step)

    def add_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Note a logged step. Writes the law, and alarms that this step raises, to TensorBoard, file and log.

        Args:
            step: number of steps that are done.
            scalars: values by tag, as they were written.

        Raises:
            DataError: TensorBoard's events cannot be written.
        """
        self._note(step, scalars)
        law = self._fit_law(step)
        self._note(step, law)
        agreement = agreement_metrics(self.history().scalars) if OBSERVED_TAG in scalars else {}
        self._writer.write_scalars(law | agreement, step=step)
        alarms = find_alarms(self.history(), self._settings)
        raised = [alarm for alarm in alarms if alarm.step == step]
        self._file.add([*raised, *(alarm for alarm in alarms if alarm.cleared == step)])
        for alarm in raised:
            self._writer.write_markdown(f"alarm/{alarm.kind}", alarm.sentence, step=step)
            print(f"megacov: {alarm.sentence}", file=sys.stderr, flush=True)
        self.ending = next((alarm for alarm in raised if alarm.kind in self._end_on), None)

    def history(self) -> History:
        """The logged steps of the run so far, of tags that alarms and the law read."""
        return History({tag: points.series() for tag, points in self._points.items()}, {}, ())

    def _note(self, step: int, scalars: Mapping[str, float]) -> None:
        for tag, value in scalars.items():
            if _WATCHED.fullmatch(tag):
                # Event files hold float32, and who reads them later must find the same alarms.
                self._points[tag].add(step, float(np.float32(value)))

    def _fit_law(self, step: int) -> dict[str, float]:
        if step < _FIRST_LAW_STEP:
            return {}
        series = (self._points[tag].series() for tag in (ENTROPY_TAG, REWARD_TAG))
        _, (entropies, rewards) = at_common_steps(*series)
        law = fit(entropies, rewards, conditions=self._conditions)
        if law.verdict.outcome == "refused":
            self._explain(step, law.verdict)
            return {}
        low, high = law.intervals.ceiling.low, law.intervals.ceiling.high
        values = {"a": law.a, "b": law.b, "ceiling": law.ceiling, "ceiling_low": low, "ceiling_high": high}
        values["rmse"] = law.rmse
        return {f"law/{name}": value for name, value in values.items() if math.isfinite(value)}

    def _explain(self, step: int, verdict: Verdict) -> None:
        """Print a reason of the law's absence, once for each kind of reason."""
        reason = verdict.reasons[0]
        if reason.kind not in self._refusals:
            print(f"megacov: no entropy law at step {step}: {reason.sentence}", flush=True)
            self._refusals.add(reason.kind)

    def _read_earlier(self, folder: Path, first_step: int) -> None:
        history = read_history(folder, tags=[tag for tag in TAGS if _WATCHED.fullmatch(tag)])
        for problem in history.problems:
            print(f"megacov: warning: {problem}", file=sys.stderr, flush=True)
        for tag, series in history.scalars.items():
            for step, value in zip(series.steps, series.values, strict=True):
                if step < first_step:
                    self._points[tag].add(int(step), float(value))


class _Points:
    """Points of one tag in arrays that double when they are full."""

    def __init__(self) -> None:
        self._steps, self._values, self._count = np.empty(256, np.int64), np.empty(256), 0

    def add(self, step: int, value: float) -> None:
        if self._count == len(self._steps):
            self._steps = np.concatenate([self._steps, np.empty_like(self._steps)])
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
        self._steps[self._count], self._values[self._count] = step, value
        self._count += 1

    def series(self) -> Series:
        """A view, valid until the next point is added."""
        return Series(self._steps[: self._count], self._values[: self._count])

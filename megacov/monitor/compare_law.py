"""The entropy law of an algorithm: that of its run, or the mean over those of its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megacov.monitor.compare import Run, seed_interval
from megacov.monitor.entropy_law import EntropyLaw, fit
from megacov.monitor.entropy_law.estimate import Estimate, Floats, Interval


@dataclass(frozen=True, slots=True, eq=False)
class GroupLaw:
    """The law R = -a exp(H) + b in the seeds of one algorithm. Numbers are NaN where no run has a fit.

    laws: law of each run.
    """

    laws: tuple[EntropyLaw, ...]

    @property
    def a(self) -> float:
        """Mean over the runs that have a fit."""
        return _mean(curve.a for curve in self._curves)

    @property
    def b(self) -> float:
        """Mean over the runs that have a fit."""
        return _mean(curve.b for curve in self._curves)

    @property
    def ceiling(self) -> Interval:
        """95 % interval of b - a: over the seeds, or of the fit if only one run has one."""
        return self._interval(-1.0, 1.0)

    @property
    def is_refused(self) -> bool:
        """Whether the law holds in no run."""
        return all(law.verdict.outcome == "refused" for law in self.laws)

    @property
    def outcome(self) -> str:
        """In how many runs the law holds, is doubtful or is refused."""
        outcomes = [law.verdict.outcome for law in self.laws]
        if len(outcomes) == 1:
            return outcomes[0]
        return ", ".join(f"{each} in {outcomes.count(each)}" for each in dict.fromkeys(sorted(outcomes)))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Doubts about the law: one sentence for each kind of reason."""
        found = {reason.kind: reason.sentence for law in reversed(self.laws) for reason in law.verdict.reasons}
        return tuple(found.values())

    def predict(self, entropies: Floats) -> Floats:
        """Mean curve: [n] entropies in nats to [n] rewards."""
        return self.b - self.a * np.exp(entropies)

    def band(self, entropies: Floats) -> tuple[Floats, Floats]:
        """95 % interval of the curve: over the seeds, or of the fit if only one run has one.

        Args:
            entropies: [n] in nats.

        Returns:
            [n] lower and [n] upper ends.
        """
        bounds = [self._interval(-math.exp(entropy), 1.0) for entropy in entropies]
        return np.array([bound.low for bound in bounds]), np.array([bound.high for bound in bounds])

    @property
    def _curves(self) -> list[Estimate]:
        return [law.curve for law in self.laws if law.curve is not None]

    def _interval(self, of_a: float, of_b: float) -> Interval:
        """Interval of of_a * a + of_b * b."""
        curves = self._curves
        if len(curves) == 1:
            return curves[0].interval(of_a, of_b)
        return seed_interval([of_a * curve.a + of_b * curve.b for curve in curves]) or Interval(math.nan, math.nan)


def fit_group(runs: Sequence[Run]) -> GroupLaw:
    """Fit the law to each run of one algorithm.

    Args:
        runs: seeds of one algorithm.

    Returns:
        Their law.
    """
    return GroupLaw(
        tuple(fit(run.entropies, run.rewards, conditions=run.conditions, best_reward=run.best_reward) for run in runs)
    )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else math.nan

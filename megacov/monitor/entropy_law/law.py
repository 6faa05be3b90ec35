"""Fits R = -a exp(H) + b to a run (arXiv 2505.22617, section 2) and judges whether the fit means anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from megacov.errors import DataError
from megacov.monitor.entropy_law.diagnostics import Diagnostics, diagnose
from megacov.monitor.entropy_law.early import PAPER_SHARE, EarlyPrediction, predict_early
from megacov.monitor.entropy_law.estimate import Estimate, Interval, estimate
from megacov.monitor.entropy_law.verdict import NO_FIT, Reason, Verdict, judge, reasons_of_fit, reasons_of_points

_NOT_KNOWN = Interval(math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Intervals:
    """95 % intervals of a, b and the ceiling b - a."""

    a: Interval
    b: Interval
    ceiling: Interval


@dataclass(frozen=True, slots=True)
class EntropyLaw:
    """The law in one run. Without a fit, numbers are NaN, `diagnostics` and `early` are None, and `verdict` says why.

    a, b: coefficients of R = -a exp(H) + b, H in nats.
    ceiling: b - a, the reward at entropy 0.
    intervals: 95 % intervals of the three.
    rmse: root mean square of the residuals, in units of the reward.
    curve: the coefficients with their covariance; None without a fit.
    num_points: finite points of the run.
    diagnostics: checks of the residuals.
    early: prediction from the beginning of the run; None where the beginning is too short.
    verdict: whether to believe all that.
    """

    a: float
    b: float
    ceiling: float
    intervals: Intervals
    rmse: float
    num_points: int
    curve: Estimate | None
    diagnostics: Diagnostics | None
    early: EarlyPrediction | None
    verdict: Verdict

    def predict(self, entropy: float) -> float:
        """The reward at an entropy in nats; NaN without a fit."""
        return self.b - self.a * math.exp(entropy)


def fit(
    entropy: ArrayLike,
    reward: ArrayLike,
    *,
    early: float = PAPER_SHARE,
    conditions: Sequence[Reason] | None = None,
    best_reward: float | None = None,
) -> EntropyLaw:
    """Fit the law to the points of one run.

    Args:
        entropy: [n] in nats, in training or in evaluation, in the order of the steps; may hold NaN.
        reward: [n] mean reward, or an evaluation score, at the same steps; may hold NaN.
        early: share of the points from which the others are predicted.
        conditions: reasons that the run's settings give, as `read_conditions` finds them; None if nothing is known of
            the settings.
        best_reward: highest reward that a response can have, or the highest seen; None if it is not known.

    Returns:
        The law. It is a pure function of the points, so a run that grows is fitted anew.

    Raises:
        DataError: the two do not have the same length, or `early` is not between 0 and 1.
    """
    entropies, rewards = np.asarray(entropy, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    if entropies.ndim != 1 or entropies.shape != rewards.shape:
        raise DataError(
            f"The entropy law needs one reward for each entropy, and the shapes are {rewards.shape} and "
            f"{entropies.shape}: give both at the same steps."
        )
    if not 0 < early < 1:
        raise DataError(
            f"The early prediction is made from a share of {early:g} of the steps: give one between 0 and 1."
        )
    is_finite = np.isfinite(entropies) & np.isfinite(rewards)
    entropies, rewards = entropies[is_finite], rewards[is_finite]
    reasons = [*(conditions or ())]
    reasons += reasons_of_points(entropies, rewards, num_missing=int((~is_finite).sum()))
    if {reason.kind for reason in reasons} & NO_FIT:
        return _without_fit(len(entropies), judge(reasons, settings_known=conditions is not None))
    fitted = estimate(entropies, rewards)
    checks = diagnose(entropies, rewards, fitted)
    reasons += reasons_of_fit(entropies, fitted, checks, best_reward=best_reward)
    return EntropyLaw(
        a=fitted.a,
        b=fitted.b,
        ceiling=fitted.ceiling,
        intervals=Intervals(fitted.interval(1.0, 0.0), fitted.interval(0.0, 1.0), fitted.interval(-1.0, 1.0)),
        rmse=float(np.sqrt(np.mean((fitted.predict(entropies) - rewards) ** 2))),
        num_points=len(entropies),
        curve=fitted,
        diagnostics=checks,
        early=predict_early(entropies, rewards, share=early),
        verdict=judge(reasons, settings_known=conditions is not None),
    )


def _without_fit(num_points: int, verdict: Verdict) -> EntropyLaw:
    nothing = Intervals(_NOT_KNOWN, _NOT_KNOWN, _NOT_KNOWN)
    return EntropyLaw(math.nan, math.nan, math.nan, nothing, math.nan, num_points, None, None, None, verdict)

"""Whether a fit may be believed, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megacov.monitor.entropy_law.diagnostics import Diagnostics
from megacov.monitor.entropy_law.estimate import Estimate, Floats, Interval

Outcome = Literal["holds", "doubtful", "refused"]

FEWEST_POINTS = 20
NARROWEST_SPAN = 0.05
"""Span of a run's entropies that still shows a curve: exp(H) then spans 5 %. [nats]"""
HIGHEST_ENTROPY = 20.0
"""Entropy above which exp(H) is the size of no vocabulary. [nats]"""
_LARGEST_REWARD = 1e100
"""Its square, summed over a run, is still a finite number."""
_MOST_MISSING = 0.2
_UNLIKELY = 0.001
"""Probability below which residuals speak against the curve: one healthy run in a thousand is flagged for each test."""
_STRONGEST_DRIFT = 0.9

NO_FIT = frozenset({"too_few_points", "too_large", "narrow_range"})
"""Kinds of reasons that leave nothing to fit."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that speaks against the law in a run.

    kind: one word for programs.
    sentence: what was found, and what it means.
    refuses: whether the coefficients must not be used; otherwise they are to be used with care.
    """

    kind: str
    sentence: str
    refuses: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the law holds in a run.

    outcome: refused if any reason refuses, else doubtful if there is one, else holds.
    reasons: the refusing ones first.
    settings_known: whether the settings of the run were looked at.
    """

    outcome: Outcome
    reasons: tuple[Reason, ...]
    settings_known: bool

    @property
    def sentence(self) -> str:
        """The verdict in plain English, without its reasons."""
        if self.outcome == "refused":
            return "do not use these numbers."
        if self.outcome == "doubtful":
            return "use these numbers with care."
        if self.settings_known:
            return "neither the curve nor the settings of the run speak against the law."
        return (
            "the curve speaks for the law. The settings of the run are not known: the law does not hold if anything "
            "steered the entropy, or if the data changed."
        )


def judge(reasons: Sequence[Reason], *, settings_known: bool) -> Verdict:
    """Sum up the reasons."""
    ordered = tuple(sorted(reasons, key=lambda reason: not reason.refuses))
    outcome: Outcome = "holds" if not ordered else "refused" if ordered[0].refuses else "doubtful"
    return Verdict(outcome, ordered, settings_known)


def reasons_of_points(entropies: Floats, rewards: Floats, *, num_missing: int) -> list[Reason]:
    """Reasons that stand before any fit: how many points there are, and which entropies.

    Args:
        entropies: [n] finite, in nats.
        rewards: [n] finite.
        num_missing: points that were left out because one of their values is not finite.

    Returns:
        The reasons; a fit is possible only if the kind of none of them is in NO_FIT.
    """
    reasons, n = [], len(entropies)
    if num_missing:
        share = num_missing / (n + num_missing)
        sentence = f"{num_missing} of {n + num_missing} steps are not finite and were left out."
        reasons.append(Reason("not_finite", sentence, refuses=share > _MOST_MISSING))
    if n < FEWEST_POINTS:
        sentence = f"There are {n} points and the fit needs {FEWEST_POINTS}: wait for more steps."
        return [*reasons, Reason("too_few_points", sentence, refuses=True)]
    largest, best = float(np.abs(entropies).max()), float(np.abs(rewards).max())
    if largest > HIGHEST_ENTROPY or best > _LARGEST_REWARD:
        sentence = (
            f"The largest entropy has the size {largest:.3g} and the largest reward {best:.3g}, and no entropy over "
            f"tokens is above {HIGHEST_ENTROPY:g} nats: give the tags of entropy and reward themselves."
        )
        return [*reasons, Reason("too_large", sentence, refuses=True)]
    if entropies.min() < -1e-6:
        sentence = (
            f"The entropy is negative ({entropies.min():.3g}), which no distribution over tokens has: give the tag of "
            "the entropy itself."
        )
        reasons.append(Reason("negative_entropy", sentence, refuses=True))
    tenth = max(n // 10, 2)
    ordered = np.sort(entropies)
    low, high = float(ordered[:tenth].mean()), float(ordered[-tenth:].mean())
    if high - low < NARROWEST_SPAN:
        sentence = (
            f"The entropy stays between {low:.3g} and {high:.3g} nats, and a curve shows only over a span of "
            f"{NARROWEST_SPAN:g} or more."
        )
        return [*reasons, Reason("narrow_range", sentence, refuses=True)]
    first, last = float(entropies[: n // 3].mean()), float(entropies[-(n // 3) :].mean())
    end = float(entropies[-tenth:].mean())
    if last >= first:
        sentence = (
            f"The entropy does not fall ({first:.3g} nats in the first third of the run, {last:.3g} in the last), and "
            "the law is about reward that is bought with entropy."
        )
        reasons.append(Reason("entropy_not_falling", sentence, refuses=True))
    elif end > low + (high - low) / 2:
        sentence = f"The entropy fell to {low:.3g} nats and has risen again to {end:.3g}."
        reasons.append(Reason("entropy_rises_again", sentence, refuses=False))
    return reasons


def reasons_of_fit(
    entropies: Floats, fitted: Estimate, checks: Diagnostics, *, best_reward: float | None
) -> list[Reason]:
    """Reasons that the fit itself gives.

    Args:
        entropies: [n] finite, in nats.
        fitted: the fit to the points.
        checks: its diagnostics.
        best_reward: highest reward that a response can have; None if it is not known.

    Returns:
        The reasons.
    """
    reasons, ceiling = [], fitted.interval(-1.0, 1.0)
    interval = fitted.interval(1.0, 0.0)
    if interval.low <= 0:
        sentence = (
            f"Reward does not rise as entropy falls: the interval of a is {_show(interval)}, and a must be above 0."
        )
        reasons.append(Reason("no_relation", sentence, refuses=True))
    lowest, highest = np.exp(entropies.min()), np.exp(entropies.max())
    if lowest - 1 > highest - lowest:
        sentence = (
            f"The ceiling lies far outside of the run: exp(H) ran from {highest:.3g} to {lowest:.3g}, and the ceiling "
            "is at 1. Its interval holds only if the curve keeps its shape."
        )
        reasons.append(Reason("far_ceiling", sentence, refuses=False))
    if best_reward is not None and ceiling.low > best_reward:
        sentence = (
            f"The ceiling of {_show(ceiling)} is above {best_reward:g}, the highest reward of any response: the curve "
            "must flatten before it gets there."
        )
        reasons.append(Reason("impossible_ceiling", sentence, refuses=False))
    return [*reasons, *_reasons_of_residuals(fitted, checks, width=ceiling.high - ceiling.low)]


def _reasons_of_residuals(fitted: Estimate, checks: Diagnostics, *, width: float) -> list[Reason]:
    """Reasons that lie in what the fit leaves; `width` is that of the ceiling's interval."""
    reasons = []
    if checks.autocorrelation > _STRONGEST_DRIFT:
        sentence = (
            f"Errors of neighbouring steps correlate by {checks.autocorrelation:.2f}: the reward drifts away from the "
            "curve, or the curve has another shape."
        )
        reasons.append(Reason("drift", sentence, refuses=False))
    if checks.curvature_p < _UNLIKELY:
        sentence = (
            f"Reward over exp(H) is not a straight line (p {checks.curvature_p:.1g}): the curve has another shape, and "
            "its ceiling is elsewhere."
        )
        reasons.append(Reason("curvature", sentence, refuses=False))
    if checks.runs_p < _UNLIKELY:
        sentence = (
            f"The residuals are not noise: {checks.num_runs} runs of one sign where {checks.expected_runs:.0f} are "
            f"expected (p {checks.runs_p:.1g})."
        )
        reasons.append(Reason("residual_runs", sentence, refuses=False))
    left_out = checks.block_left_out
    if abs(left_out.change) > width:
        sentence = (
            f"One stretch of the run carries the fit: without points {left_out.first} to {left_out.last} the ceiling "
            f"is {left_out.ceiling:.3g} instead of {fitted.ceiling:.3g}."
        )
        reasons.append(Reason("influence", sentence, refuses=False))
    if checks.halves_p is not None and checks.halves_p < _UNLIKELY:
        sentence = (
            f"The two halves of the run follow different curves (p {checks.halves_p:.1g}): data, settings or algorithm "
            "changed on the way, or the law has another shape here."
        )
        reasons.append(Reason("halves_differ", sentence, refuses=False))
    return reasons


def _show(interval: Interval) -> str:
    return f"{interval.low:.3g} to {interval.high:.3g}"

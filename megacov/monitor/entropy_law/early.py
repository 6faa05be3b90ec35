"""What the beginning of a run says about the rest of it: the paper fits the first 15 % of the steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from megacov.monitor.entropy_law.estimate import Floats, Interval, estimate

PAPER_SHARE = 0.15
FEWEST_EARLY = 6
"""Points below which a beginning has no curve with intervals."""


@dataclass(frozen=True, slots=True)
class EarlyPrediction:
    """A fit to the first steps, and its errors on the other ones. Their entropies are known, their rewards are not.

    num_points: points of the fit.
    a, b, ceiling: of that fit.
    ceiling_interval: 95 % interval of its ceiling.
    rmse: root mean square of predicted minus observed reward, over the other points.
    final_error: predicted minus observed reward at the last point.
    """

    num_points: int
    a: float
    b: float
    ceiling: float
    ceiling_interval: Interval
    rmse: float
    final_error: float


def predict_early(entropies: Floats, rewards: Floats, *, share: float = PAPER_SHARE) -> EarlyPrediction | None:
    """Fit the first points of a run and compare the curve with the others.

    Args:
        entropies: [n] finite, in nats, in the order of the steps.
        rewards: [n] finite.
        share: share of the points that the fit sees, between 0 and 1.

    Returns:
        The prediction; None if the first points are fewer than FEWEST_EARLY, have one entropy only, or are all of them.
    """
    count = math.ceil(share * len(entropies) - 1e-9)
    if not FEWEST_EARLY <= count < len(entropies):
        return None
    try:
        fitted = estimate(entropies[:count], rewards[:count])
    except ValueError:
        return None
    errors = fitted.predict(entropies[count:]) - rewards[count:]
    return EarlyPrediction(
        num_points=count,
        a=fitted.a,
        b=fitted.b,
        ceiling=fitted.ceiling,
        ceiling_interval=fitted.interval(-1.0, 1.0),
        rmse=float(np.sqrt(np.mean(errors**2))),
        final_error=float(errors[-1]),
    )

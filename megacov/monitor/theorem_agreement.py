"""How well the predicted changes of entropy agree with the observed ones over a window of measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from megacov.monitor.history import Series

PREDICTIONS = ("covariance", "centred", "gradient", "directional")
OBSERVED_TAG = "theorem/observed"
WINDOW = 50
_FEWEST = 5


@dataclass(frozen=True, slots=True)
class Agreement:
    """Predicted against observed changes.

    count: measurements.
    correlation: Pearson's.
    slope: of the least-squares line through them, with an intercept: observed nats for each predicted one.
    same_sign: share of the measurements in which both have one sign.
    """

    count: int
    correlation: float
    slope: float
    same_sign: float


def find_agreement(predicted: Series, observed: Series, *, window: int | None = WINDOW) -> Agreement | None:
    """Compare the last measurements that both series have.

    Args:
        predicted: predicted change by step.
        observed: observed change by step.
        window: the last measurements to compare; None for all.

    Returns:
        The agreement, or None with fewer than five measurements, or where all predictions are equal. The correlation is
        NaN where all observations are equal.
    """
    _, of_predicted, of_observed = np.intersect1d(
        predicted.steps, observed.steps, assume_unique=True, return_indices=True
    )
    x, y = predicted.values[of_predicted], observed.values[of_observed]
    is_finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[is_finite], y[is_finite]
    if window is not None:
        x, y = x[-window:], y[-window:]
    if len(x) < _FEWEST or np.ptp(x) == 0:
        return None
    # The values may be tiny, and their squares must not be lost.
    scale_x, scale_y = float(np.abs(x).max()), float(np.abs(y).max()) or 1.0
    dx, dy = (x - x.mean()) / scale_x, (y - y.mean()) / scale_y
    along, across = float(dx @ dy), float(dx @ dx)
    spread = math.sqrt(across * float(dy @ dy))
    correlation = along / spread if spread > 0 else math.nan
    return Agreement(len(x), correlation, along / across * scale_y / scale_x, float(np.mean(np.sign(x) == np.sign(y))))


def agreement_metrics(scalars: Mapping[str, Series]) -> dict[str, float]:
    """The agreement of each prediction over the last `WINDOW` measurements.

    Args:
        scalars: `theorem/*` by tag.

    Returns:
        `theorem/PREDICTION_correlation`, `_slope` and `_same_sign`; without those that have no value yet.
    """
    metrics: dict[str, float] = {}
    for name in PREDICTIONS:
        if f"theorem/{name}" not in scalars or OBSERVED_TAG not in scalars:
            continue
        found = find_agreement(scalars[f"theorem/{name}"], scalars[OBSERVED_TAG])
        if found is not None:
            values = {"correlation": found.correlation, "slope": found.slope, "same_sign": found.same_sign}
            metrics |= {f"theorem/{name}_{key}": value for key, value in values.items() if math.isfinite(value)}
    return metrics

"""How a and b grow with the size of the model, and what smaller models say about a larger one.

The paper finds both coefficients to be straight lines in the logarithm of the number of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megacov.errors import DataError
from megacov.monitor.entropy_law.estimate import Interval
from megacov.monitor.entropy_law.student import t_quantile

FEWEST_SIZES = 2


@dataclass(frozen=True, slots=True)
class SizedLaw:
    """Coefficients of a run, and the size of its model.

    size: parameters, in any unit that all runs share, such as billions.
    a, b: of R = -a exp(H) + b.
    """

    size: float
    a: float
    b: float


@dataclass(frozen=True, slots=True)
class SizeLine:
    """A straight line through coefficients of several sizes.

    per_tenfold: what a size ten times as large adds.
    value: the line at the size asked for.
    interval: 95 % interval of a run's coefficient there; None with two runs, which any line fits.
    error: value minus the mean of the runs of that size; None where there are none.
    """

    per_tenfold: float
    value: float
    interval: Interval | None
    error: float | None


@dataclass(frozen=True, slots=True)
class SizePrediction:
    """Coefficients of a larger model, predicted from smaller ones.

    size: size that is predicted.
    from_sizes: the sizes of the runs that predict it, ascending, each once.
    a, b, ceiling: lines through the other sizes' coefficients, at that size.
    """

    size: float
    from_sizes: tuple[float, ...]
    a: SizeLine
    b: SizeLine
    ceiling: SizeLine


def predict_size(laws: Sequence[SizedLaw], size: float) -> SizePrediction:
    """Predict the coefficients of a model from those of the other sizes.

    Args:
        laws: runs of smaller models, and if there are any, of the size to predict, which is compared with them only.
        size: size to predict, in the unit of the runs.

    Returns:
        Lines through the runs of the other sizes, and their errors.

    Raises:
        DataError: there are fewer than two other sizes, or a size is not above 0.
    """
    if not all(math.isfinite(law.size) and law.size > 0 for law in (*laws, SizedLaw(size, 0, 0))):
        raise DataError("A model's size is a number of parameters above 0: correct --sizes or --predict-size.")
    others, own = [law for law in laws if law.size != size], [law for law in laws if law.size == size]
    from_sizes = tuple(sorted({law.size for law in others}))
    if len(from_sizes) < FEWEST_SIZES:
        raise DataError(
            f"A line over sizes needs runs of {FEWEST_SIZES} sizes beside {size:g}, and there are {len(from_sizes)}: "
            "add runs of other sizes."
        )
    sizes = [law.size for law in others]
    return SizePrediction(
        size,
        from_sizes,
        a=_line(sizes, [law.a for law in others], size, [law.a for law in own]),
        b=_line(sizes, [law.b for law in others], size, [law.b for law in own]),
        ceiling=_line(sizes, [law.b - law.a for law in others], size, [law.b - law.a for law in own]),
    )


def _line(sizes: Sequence[float], values: Sequence[float], size: float, observed: Sequence[float]) -> SizeLine:
    logs, y = np.log10(sizes), np.asarray(values)
    x, at = logs - logs.mean(), math.log10(size) - float(logs.mean())
    squares = float(x @ x)
    slope, dof = float(x @ y) / squares, len(y) - 2
    value = float(y.mean()) + slope * at
    error = value - float(np.mean(observed)) if observed else None
    if dof < 1:
        return SizeLine(slope, value, None, error)
    variance = float(np.sum((y - y.mean() - slope * x) ** 2)) / dof
    half = t_quantile(dof) * math.sqrt(variance * (1 + 1 / len(y) + at * at / squares))
    return SizeLine(slope, value, Interval(value - half, value + half), error)

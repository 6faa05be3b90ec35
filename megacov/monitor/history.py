"""A run's metrics as arrays, whichever file they were read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Points of one tag.

    Args:
        steps: [n], strictly increasing.
        values: [n], value at each step, in the tag's unit; may hold NaN.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Metrics of one run.

    Args:
        scalars: points by tag.
        texts: last text by tag.
        problems: one sentence for each file that was corrupt, empty or cut off.
    """

    scalars: Mapping[str, Series]
    texts: Mapping[str, str]
    problems: tuple[str, ...]

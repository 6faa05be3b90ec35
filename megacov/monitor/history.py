"""A run's metrics as arrays, whichever file they were read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Points of one tag.

    Args:
        steps: [n], strictly increasing.
        values: [n], value at each step, in the tag's unit; may hold NaN.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of_points(cls, steps: ArrayLike, values: ArrayLike) -> Series:
        """Make a series of points in any order.

        Args:
            steps: [n], in the order in which they were written.
            values: [n], value at each step.

        Returns:
            The points in the order of their steps; where a step was written several times, the last value.
        """
        unique, positions = np.unique(np.array(steps, dtype=np.int64)[::-1], return_index=True)
        return cls(steps=unique, values=np.array(values, dtype=np.float64)[::-1][positions])


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

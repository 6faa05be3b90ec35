"""One row of the table of metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Denominator = Literal["tokens", "sequences", "groups", "none"]
Kind = Literal["scalar", "histogram", "text"]


@dataclass(frozen=True, slots=True)
class Tag:
    """One metric.

    name: `section/metric`, as TensorBoard shows it.
    meaning: one sentence, or a few.
    unit: unit of the value; "share" is a fraction in [0, 1].
    denominator: what the value is a mean over; "none" for sums, extremes and settings.
    kind: how TensorBoard stores it.
    """

    name: str
    meaning: str
    unit: str
    denominator: Denominator
    kind: Kind = "scalar"

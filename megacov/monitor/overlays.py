"""Colours of tokens: which level a value has on a scale, and how a level looks. Shared by terminal and page.

A token is coloured by one of the overlays. The size of its value has a level from 0 (nothing to see) to 4, with a minus
where the value is negative. A scale is fixed, so that steps and runs can be compared, or made of the quantiles of the
values at hand, so that there is always something to see.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HIGHEST = 4
"""The highest level."""
NOTABLE = 3
"""Tokens of this level and above are those that a reader is led to."""
SHARES = (0.5, 0.8, 0.95, 0.99)
"""Quantiles at which the levels of a quantile scale begin: a hundredth of the tokens has the highest level."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """One quantity that colours tokens.

    name: the field of a sample that holds its values.
    title, unit: for people; a unit may be empty.
    is_signed: whether values below 0 are a kind of their own.
    edges: size above which level 1, 2, 3 and 4 begin on the fixed scale. [unit]
    """

    name: str
    title: str
    unit: str
    is_signed: bool
    edges: tuple[float, float, float, float]

    @property
    def is_yes_or_no(self) -> bool:
        """Whether values are only 0 and 1."""
        return self.edges[0] == self.edges[-1]


OVERLAYS = {
    overlay.name: overlay
    for overlay in (
        Overlay("entropy", "entropy", "nats", is_signed=False, edges=(0.05, 0.2, 0.7, 1.5)),
        Overlay("covariance", "covariance", "nats", is_signed=True, edges=(0.02, 0.1, 0.5, 2.0)),
        Overlay(
            "mismatch", "mismatch (server - trainer log-prob)", "nats", is_signed=True, edges=(0.01, 0.05, 0.2, 1.0)
        ),
        Overlay("selected", "selection", "", is_signed=False, edges=(0.5, 0.5, 0.5, 0.5)),
    )
}
"""Every overlay by its name, in the order in which a key goes through them."""


@dataclass(frozen=True, slots=True)
class Band:
    """One line of a legend: values of size above `low`, up to `high` (None: without bound), have this level."""

    level: int
    low: float
    high: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Levels of one overlay. `edges`: size above which level 1, 2, 3 and 4 begin, never falling; `kind` for people."""

    overlay: Overlay
    kind: str
    edges: tuple[float, float, float, float]

    def level(self, value: float | None) -> int | None:
        """Level of a value: 0 to 4, also negative where the overlay is signed; None if it is not known or finite."""
        if value is None or not math.isfinite(value):
            return None
        if value < 0 and not self.overlay.is_signed:
            return 0
        level = bisect.bisect_left(self.edges, abs(value))
        return -level if value < 0 else level

    def levels(self, values: Iterable[float | None]) -> list[int | None]:
        """Level of each value."""
        return [self.level(value) for value in values]

    def marker(self, level: int | None) -> str:
        """How a level is written where there is no colour; nothing at level 0 and where the value is not known."""
        if not level:
            return ""
        return "*" if self.overlay.is_yes_or_no else str(level)

    def legend(self) -> tuple[Band, ...]:
        """Levels that a value can have, from the lowest to the highest, each with its values in words."""
        overlay = self.overlay
        if overlay.is_yes_or_no:
            return (Band(0, 0, 0.5, "not selected"), Band(HIGHEST, 0.5, None, "selected"))
        lows: Sequence[float] = (0.0, *self.edges)
        highs: Sequence[float | None] = (*self.edges, None)
        bands = []
        for level, (low, high) in enumerate(zip(lows, highs, strict=True)):
            if high is None or low < high or level == 0:
                bands.append(Band(level, low, high, _range(low, high, is_negative=False)))
        if not overlay.is_signed:
            return tuple(bands)
        middle = Band(0, 0.0, self.edges[0], f"within +-{self.edges[0]:.3g}")
        negative = [Band(-b.level, b.low, b.high, _range(b.low, b.high, is_negative=True)) for b in bands[:0:-1]]
        return (*negative, middle, *bands[1:])


def fixed_scale(overlay: Overlay) -> Scale:
    """The scale that is equal for all steps and runs."""
    return Scale(overlay, "fixed", overlay.edges)


def quantile_scale(overlay: Overlay, values: Iterable[float | None]) -> Scale:
    """The scale on which at most a half, a fifth, a twentieth and a hundredth of these values are at level 1, 2, 3, 4.

    Equal values have equal levels, so if most are equal there are fewer at the upper levels.

    Args:
        overlay: what the values are; yes and no keep the fixed scale.
        values: of the tokens at hand; those that are not known or not finite do not count, and without any the scale is
            the fixed one.

    Returns:
        The scale.
    """
    sizes = sorted(abs(value) for value in values if value is not None and math.isfinite(value))
    if overlay.is_yes_or_no or not sizes:
        return fixed_scale(overlay)
    first, second, third, fourth = (sizes[math.ceil(share * len(sizes)) - 1] for share in SHARES)
    return Scale(overlay, "quantiles", (first, second, third, fourth))


@dataclass(frozen=True, slots=True)
class Colours:
    """Background and text as #rrggbb; any reader can tell the text from its background."""

    background: str
    text: str


COLOURS = {
    1: Colours("#fff0bf", "#000000"),
    2: Colours("#ffc04d", "#000000"),
    3: Colours("#e8760c", "#000000"),
    4: Colours("#8f2d00", "#ffffff"),
    -1: Colours("#d9eaf8", "#000000"),
    -2: Colours("#93c4ee", "#000000"),
    -3: Colours("#3d8fd6", "#000000"),
    -4: Colours("#0a4386", "#ffffff"),
}
"""Colours by level; level 0 and unknown have none. Orange and blue differ for every kind of colour blindness, and each
darkens with the level, so a grey print keeps the order."""


def is_notable(level: int | None) -> bool:
    """Whether a reader is led to tokens of this level."""
    return level is not None and abs(level) >= NOTABLE


def _range(low: float, high: float | None, *, is_negative: bool) -> str:
    sign = "-" if is_negative else ""
    if high is None:
        return f"{'below' if is_negative else 'above'} {sign}{low:.3g}"
    if low == 0.0:
        return f"{'above' if is_negative else 'up to'} {sign}{high:.3g}"
    return f"{sign}{high:.3g} to {sign}{low:.3g}" if is_negative else f"{low:.3g} to {high:.3g}"

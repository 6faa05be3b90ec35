"""Uses of verifiers that run programs or ask a judge, also as parts of another, and how long these may take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_DEFAULT_TOTAL_S = {"code": 25.0, "judge": 28.0}
"""Default of the argument total_s of each verifier that bounds its own time."""


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a verifier.

    place: the setting that names it, in words.
    name: "code" or "judge".
    arguments: its arguments.
    """

    place: str
    name: str
    arguments: Mapping[str, Any]

    @property
    def total_s(self) -> float:
        """Deadline that it sets itself; 0 for an argument that is no number, which the verifier refuses. [s]"""
        total_s = self.arguments.get("total_s", _DEFAULT_TOTAL_S[self.name])
        return float(total_s) if isinstance(total_s, int | float) else 0.0


def find_uses(place: str, verifier: Any, arguments: Any) -> Iterator[Use]:
    """Find the verifiers `code` and `judge`, also as parts of another.

    Args:
        place: the setting that names the verifier, in words.
        verifier: value of that setting.
        arguments: its arguments.

    Yields:
        Each use.
    """
    arguments = arguments if isinstance(arguments, Mapping) else {}
    for name in _DEFAULT_TOTAL_S:
        own = f"megacov.rewards.verifiers.{name}:"
        if verifier == name or (isinstance(verifier, str) and verifier.startswith(own)):
            yield Use(place, name, arguments)
    parts = arguments.get("parts")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, Mapping):
            yield from find_uses(f"a part of {place}", part.get("verifier"), part.get("arguments"))


def too_slow(place: str, verifier: Any, arguments: Any, *, timeout_s: float, setting: str) -> str | None:
    """The sentence for a verifier whose own deadlines are not below that of its verdict.

    A slow program scores 0, and a judge that is late has a reason to report. A verdict that is late counts as a failure
    without a reason, and its process is replaced.

    Args:
        place: the setting that names the verifier, in words.
        verifier: value of that setting.
        arguments: its arguments.
        timeout_s: longest time of a verdict. [s]
        setting: path of the setting with that time.

    Returns:
        None if the deadlines are shorter; parts of a weighted verifier take turns, so theirs add up.
    """
    uses = [use for use in find_uses(place, verifier, arguments) if use.total_s > 0]
    if not uses or sum(use.total_s for use in uses) < timeout_s:
        return None
    names = " and then ".join(f"{use.place} is {use.name}" for use in uses)
    times = " + ".join(f"{use.total_s:g}" for use in uses)
    return (
        f"{names}, which may take total_s = {times} s, and {setting} is {timeout_s:g}: raise {setting}, or lower the "
        "argument total_s."
    )

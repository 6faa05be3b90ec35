"""Styled text as bytes for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from rich.color import ColorSystem
from rich.style import Style

from megacov.cli.viewer.screen import Span
from megacov.monitor.overlays import COLOURS, is_notable


def colours_of(environment: Mapping[str, str]) -> ColorSystem | None:
    """How many colours a terminal has, as its environment says; None where they are too few, or not wanted.

    Eight levels need more than the 16 colours that every terminal has. NO_COLOR is https://no-color.org's.
    """
    if environment.get("NO_COLOR"):
        return None
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return ColorSystem.TRUECOLOR
    return ColorSystem.EIGHT_BIT if "256color" in environment.get("TERM", "") else None


class Painter:
    """Turns spans into text with escape sequences for looks, and nothing else."""

    def __init__(self, colours: ColorSystem | None) -> None:
        """Paint with these colours; None underlines instead."""
        self._colours = colours
        self._style = cache(self._make_style)

    def paint(self, line: Iterable[Span]) -> str:
        """One line; its looks end with it."""
        return "".join(
            self._style(span.role, span.level, span.is_cursor, span.is_underlined).render(
                span.text, color_system=self._colours or ColorSystem.STANDARD
            )
            for span in line
        )

    def _make_style(self, role: str, level: int, is_cursor: bool, is_underlined: bool) -> Style:
        if self._colours is None:
            return Style(
                bold=role == "heading" or is_notable(level) or None,
                dim=role == "dim" or None,
                underline=is_underlined or level != 0 or None,
                reverse=is_cursor or None,
            )
        colours = COLOURS.get(level)
        return Style(
            color=colours.text if colours else None,
            bgcolor=colours.background if colours else None,
            bold=role == "heading" or is_cursor or None,
            dim=role == "dim" or None,
            underline=is_underlined or None,
            reverse=is_cursor or None,
        )

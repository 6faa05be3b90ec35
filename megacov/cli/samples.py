"""`megacov samples`: the sampled responses of a run, token by token, in the terminal or as text."""

from __future__ import annotations

import codecs
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.color import ColorSystem

_LIMIT = 8
"""Samples that are printed unless a number is given: those of one step, by default."""


class OverlayName(StrEnum):
    """What colours the tokens."""

    ENTROPY = "entropy"
    COVARIANCE = "covariance"
    MISMATCH = "mismatch"
    SELECTED = "selected"


class Colour(StrEnum):
    """When to colour."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def samples(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    step: Annotated[str, typer.Option(metavar="N|A:B", help="Steps; from A on with A:, up to B with :B.")] = "",
    reward: Annotated[str, typer.Option(metavar="X|A:B", help="Rewards, such as 0:0.5.")] = "",
    tokens: Annotated[str, typer.Option(metavar="N|A:B", help="Lengths of the response in tokens.")] = "",
    truncated: Annotated[bool, typer.Option("--truncated", help="Responses that the length limit cut.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Responses on which the verifier failed.")] = False,
    source: Annotated[str, typer.Option(help="Name of a source of prompts.")] = "",
    text: Annotated[str, typer.Option(help="Words in prompt or response.")] = "",
    overlay: Annotated[OverlayName, typer.Option(help="What colours the tokens.")] = OverlayName.ENTROPY,
    quantiles: Annotated[
        bool, typer.Option("--quantiles", help="Levels are quantiles of the step's tokens, not fixed numbers.")
    ] = False,
    colour: Annotated[
        Colour, typer.Option("--color", help="auto: on a terminal that has 256 colours, unless NO_COLOR is set.")
    ] = Colour.AUTO,
    plain: Annotated[bool, typer.Option("--plain", help="Print instead of opening the viewer.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=0, help=f"Most samples to print; default: {_LIMIT}, and all with --json.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a sample.")] = False,
) -> None:
    """Show sampled responses with their tokens coloured; the newest step first. Keys: press ? in the viewer."""
    from megacov.cli.viewer.browser import Browser, RunSamples
    from megacov.cli.viewer.loop import browse
    from megacov.cli.viewer.paint import Painter
    from megacov.cli.viewer.plain import json_line, passing_samples, text_lines
    from megacov.cli.viewer.terminal import Terminal
    from megacov.cli.viewer.viewer import Viewer
    from megacov.monitor.sample_filter import SampleFilter, parse_span

    ranges = {
        name: parse_span(given, f"--{name}") if given else None
        for name, given in (("step", step), ("reward", reward), ("tokens", tokens))
    }
    kept = SampleFilter(**ranges, truncated=truncated, failed=failed, source=source, text=text)
    can_draw = sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    is_open = can_draw and sys.stdin.isatty() and not plain and not as_json
    terminal = Terminal(0, 1)
    browser = Browser(RunSamples(run), kept, should_stop=terminal.has_input if is_open else lambda: False)
    if as_json:
        for sample in passing_samples(browser, limit):
            print(json_line(sample))
        return
    colours = _colours(colour, is_drawn=can_draw)
    viewer = Viewer(
        browser,
        overlay=overlay.value,
        has_quantiles=quantiles,
        has_colour=colours is not None,
        ascii_only=codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8",
    )
    if is_open:
        browse(viewer, terminal, colours)
        return
    painter = Painter(colours) if can_draw or colours is not None else None
    width = terminal.size()[0] if sys.stdout.isatty() else None
    for line in text_lines(viewer, _LIMIT if limit is None else limit, width=width, painter=painter):
        print(line)


def _colours(when: Colour, *, is_drawn: bool) -> ColorSystem | None:
    """Colours to use; None for none."""
    from rich.color import ColorSystem

    from megacov.cli.viewer.paint import colours_of

    if when == Colour.ALWAYS:
        return colours_of({**os.environ, "NO_COLOR": ""}) or ColorSystem.EIGHT_BIT
    return colours_of(os.environ) if when == Colour.AUTO and is_drawn else None

"""What the viewer shows, as lines of styled text for a screen of any size."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len, set_cell_size

from megacov.cli.viewer.layout import Line
from megacov.cli.viewer.viewer import Viewer
from megacov.monitor.overlays import Band, Scale
from megacov.monitor.samples import ShownSample
from megacov.monitor.visible_text import visible

KEYS = (
    ("left right, up down", "previous or next token, line above or below"),
    ("space b, PgDn PgUp", "page down, page up"),
    ("Home End", "first token (twice: the prompt), last token"),
    (". ,", "next, previous token that is notable (two upper levels) or selected"),
    ("n p", "next, previous sample"),
    ("] [", "next, previous step"),
    ("o, 1 to 4", "next overlay; entropy, covariance, mismatch, selection"),
    ("s", "fixed scale, or quantiles of the step's tokens"),
    ("c", "colours, or markers such as [3|token]"),
    ("f", "filter: step= reward= tokens= (0:0.5, 0.5:, :0.5), truncated, failed, source=, text="),
    ("/ x", "search for words; show all samples again"),
    ("r", "read what the run has written since"),
    ("q", "quit"),
)
_HINT = "? keys  n p sample  ] [ step  o overlay  . notable  f filter  / search  q quit"

Role = Literal["plain", "heading", "dim"]


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a line of the screen, with how it looks."""

    text: str
    role: Role = "plain"
    level: int = 0
    is_cursor: bool = False
    is_underlined: bool = False


@dataclass(frozen=True, slots=True)
class Screen:
    """Lines from top to bottom, none wider than the screen, and where the terminal's cursor belongs, if anywhere."""

    lines: list[list[Span]]
    cursor: tuple[int, int] | None


def render(viewer: Viewer, width: int, height: int, *, entry: str | None = None, has_help: bool = False) -> Screen:
    """Draw the viewer.

    Args:
        viewer: what to show; it is laid out again if the size has changed.
        width: cells of a line, at least 1.
        height: lines, at least 1; a small screen has no room for all the lines about the text.
        entry: what the reader is typing, with its label; None if nothing.
        has_help: whether to show the keys instead of the sample.

    Returns:
        As many lines as the screen has.
    """
    if entry is not None:
        last = [[Span(_end_of(entry, width - 1))]]
    elif viewer.message:
        message = visible(viewer.message, ascii_only=viewer.ascii_only)
        last = [[Span(words, "heading")] for words in textwrap.wrap(message, width)[: max(1, height // 4)]]
    else:
        last = [[Span(_HINT, "dim")]]
    if has_help:
        lines = [[Span(f"{keys:<22}", "heading"), Span(what)] for keys, what in KEYS][: height - 1]
        lines += [[]] * (height - 1 - len(lines))
        return Screen([_clip(line, width) for line in [*lines, [Span("any key goes back", "dim")]]], None)
    above = [title(viewer, with_run=True)] if height >= 3 else []
    above += (
        [[Span(facts(viewer.sample, str(viewer.browser.kept), ascii_only=viewer.ascii_only), "dim")]]
        if height >= 9
        else []
    )
    below = list(_detail(viewer)) if height >= 7 else []
    below = [legend(viewer.scale, has_colour=viewer.has_colour), *below] if height >= 5 else below
    below += last if height >= 2 or entry is not None else []
    room = max(0, height - len(above) - len(below))
    viewer.resize(width, room)
    body = [
        token_line(viewer.document.lines[i], viewer, cursor=viewer.cursor) if i < len(viewer.document.lines) else []
        for i in range(viewer.top, viewer.top + room)
    ]
    cursor = None
    if entry is not None:
        cursor = (height - 1, min(cell_len(entry), width - 1))
    elif viewer.tokens is not None and 0 <= viewer.document.line_of[viewer.cursor] - viewer.top < room:
        row = viewer.document.line_of[viewer.cursor] - viewer.top
        cursor = (len(above) + row, min(viewer.document.column_of[viewer.cursor], width - 1))
    return Screen([_clip(line, width) for line in [*above, *body, *below]], cursor)


def title(viewer: Viewer, *, with_run: bool = False) -> list[Span]:
    """Where the sample is, and what it was worth."""
    browser, sample = viewer.browser, viewer.sample
    passing = browser.loaded.passing(browser.kept)
    place = (
        f"{passing.index(browser.index) + 1} of {len(passing)}" if browser.index in passing else "outside the filter"
    )
    hidden = len(browser.loaded.samples) - len(passing)
    words = [
        f"step {sample.step} ({min(browser.position + 1, len(browser.run.steps))} of {len(browser.run.steps)})",
        f"sample {place}{f' that pass, {hidden} hidden' if hidden else ''}",
        f"reward {sample.reward:.4g}",
        f"{sample.num_tokens} tokens",
    ]
    words += [visible(browser.run.run.resolve().name, ascii_only=viewer.ascii_only)] if with_run else []
    return [Span("  ".join(words), "heading")]


def facts(sample: ShownSample, kept: str, *, ascii_only: bool = False) -> str:
    """What else is known about a sample."""
    ends = {"length": "cut at the length limit", "stop": "ended by itself", "abort": "aborted", "": "end not known"}
    words = [ends.get(sample.finish_reason, sample.finish_reason)]
    words += [each for each in sample.notable if each not in words]
    words += [f"verifier failure: {sample.failure}"] if sample.failure else []
    words += [f"source {sample.source}"] if sample.source else []
    words += [f"row {sample.sample} of the batch"] if sample.sample is not None else []
    words += [f"weights {' '.join(sample.versions)}"] if sample.versions else []
    words += [f"staleness {sample.staleness}"] if sample.staleness else []
    words += [f"filter: {kept}"] if kept else []
    return visible(", ".join(words), ascii_only=ascii_only)


def legend(scale: Scale, *, has_colour: bool) -> list[Span]:
    """The overlay with its unit and scale, and how each of its levels looks."""
    unit = f" [{scale.overlay.unit}]" if scale.overlay.unit else ""
    kind = "" if scale.overlay.is_yes_or_no else f", {scale.kind}"
    spans = [Span(f"{scale.overlay.name}{unit}{kind}: ", "dim")]
    for band in scale.legend():
        words = band.text if scale.overlay.is_yes_or_no else _bound(band)
        marker = "" if has_colour else scale.marker(band.level)
        spans.append(Span(f"[{marker}|{words}]" if marker else f" {words} ", level=band.level))
    if not scale.overlay.is_yes_or_no:
        spans += [Span(" "), Span("selected", is_underlined=True)] if has_colour else [Span(" [*|selected]")]
    return spans


def token_line(line: Line, viewer: Viewer, *, cursor: int | None = None) -> list[Span]:
    """A line of the text, each of its tokens with its look; `cursor` is the token that is under it."""
    tokens = viewer.tokens
    if tokens is None:
        return [Span(piece.text, piece.role) for piece in line]
    return [
        Span(piece.text, piece.role)
        if (token := piece.token) is None
        else Span(
            piece.text,
            "plain" if tokens.kept[token] else "dim",
            level=viewer.levels[token] or 0,
            is_cursor=token == cursor,
            is_underlined=bool(tokens.selected[token]),
        )
        for piece in line
    ]


def _detail(viewer: Viewer) -> Iterator[list[Span]]:
    tokens, i = viewer.tokens, viewer.cursor
    if tokens is None:
        yield [Span(no_values(viewer.sample), "dim")]
        yield []
        return
    text = visible(tokens.texts[i], ascii_only=viewer.ascii_only)
    marks = f"{', selected' if tokens.selected[i] else ''}{'' if tokens.kept[i] else ', not in the loss'}"
    yield [Span(f"token {i + 1} of {len(tokens.texts)}{marks}  "), Span(f'"{text}"', "heading")]
    chance = f" (p {math.exp(tokens.log_probs[i]):.3g})" if tokens.log_probs[i] <= 0 else ""
    yield [
        Span(
            f"log-prob {_number(tokens.log_probs[i])}{chance}  entropy {_number(tokens.entropy[i])}  "
            f"covariance {_number(tokens.covariance[i])}  mismatch {_number(tokens.mismatch[i])}"
        )
    ]


def no_values(sample: ShownSample) -> str:
    """Why a sample has no colours."""
    if sample.tokens is not None:
        return "The response has no tokens."
    return "Plain text: no values of its tokens (step not logged, thinned, or written by an older megacov)."


def _number(value: float) -> str:
    return f"{value + 0.0:.4g}" if math.isfinite(value) else "unknown"  # no "-0"


def _bound(band: Band) -> str:
    if band.level == 0:
        return f"to {band.high:.3g}"
    return f"<{-band.low:.3g}" if band.level < 0 else f">{band.low:.3g}"


def _end_of(text: str, width: int) -> str:
    """The end of a text, as much as fits."""
    while cell_len(text) > max(0, width):
        text = text[1:]
    return text


def _clip(line: list[Span], width: int) -> list[Span]:
    """The part of a line that fits."""
    clipped = []
    for span in line:
        size = cell_len(span.text)
        if size > width:
            clipped.append(
                Span(set_cell_size(span.text, width), span.role, span.level, span.is_cursor, span.is_underlined)
            )
            break
        clipped.append(span)
        width -= size
        if not width:
            break
    return clipped

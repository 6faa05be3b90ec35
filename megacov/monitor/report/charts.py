"""Charts of a run's metrics by step, each with its text and its numbers for readers who cannot see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megacov.monitor.history import Series
from megacov.monitor.report.frame import HEIGHT, WIDTH, Frame
from megacov.monitor.report.text import count, escape, number

MAX_ROWS = 40
"""Rows of the table below a chart: equally spaced steps, the first and the last among them."""
NUM_STYLES = 7
"""Lines that the style sheet tells apart, by colour and by dashes."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of metrics by step.

    key: letters, digits and hyphens; unique on the page.
    unit: of every line.
    lines: tag by name, in the order of the legend; tags that a run does not have are left out.
    note: what a reader must know to judge the lines.
    """

    key: str
    title: str
    unit: str
    lines: Mapping[str, str]
    note: str = ""


def draw(chart: Chart, scalars: Mapping[str, Series]) -> str:
    """Draw those lines of a chart that a run has; "" if it has none."""
    lines = {name: scalars[tag] for name, tag in chart.lines.items() if tag in scalars and len(scalars[tag].steps)}
    if not lines:
        return ""
    frame = Frame(
        np.concatenate([series.steps for series in lines.values()]).astype(np.float64),
        np.concatenate([series.values for series in lines.values()]),
        x_label="step",
        y_label=chart.unit,
    )
    shapes = [
        frame.line(series.steps.astype(np.float64), series.values, f"line s{place % NUM_STYLES}")
        for place, series in enumerate(lines.values())
    ]
    described = [describe(name, series) for name, series in lines.items()]
    return figure(
        chart.key,
        chart.title,
        legend(lines) + svg(chart.key, chart.title, frame.axes() + "".join(shapes)),
        described=described,
        note=chart.note,
        numbers=_numbers(chart, lines),
    )


def figure(key: str, title: str, picture: str, *, described: Sequence[str], note: str = "", numbers: str = "") -> str:
    """A chart with its title, its legend, a description in words, and its numbers in a table that can be opened."""
    note = f"<p>{escape(note)}</p>" if note else ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in described)
    more = f"<details><summary>Numbers: {escape(title)}</summary>{numbers}</details>" if numbers else ""
    return (
        f'<figure id="{key}" aria-labelledby="{key}-title"><h3 id="{key}-title">{escape(title)}</h3>{picture}'
        f'<figcaption>{note}<ul id="{key}-text">{items}</ul></figcaption>{more}</figure>'
    )


def svg(key: str, title: str, shapes: str) -> str:
    """A picture that a screen reader reads as its title, and as the text of its figure."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"'
        f' aria-describedby="{key}-text">{shapes}</svg>'
    )


def legend(names: Iterable[str]) -> str:
    """Names of the lines beside samples of them, in the order in which they are drawn."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 28 8" aria-hidden="true"><path class="line s{place % NUM_STYLES}"'
        f' d="M0 4L28 4"/></svg>{escape(name)}</li>'
        for place, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def describe(name: str, series: Series) -> str:
    """A line in words: where it begins and ends, and its extremes."""
    known = np.isfinite(series.values)
    if not known.any():
        return f"{name}: no value at {count(len(series.steps), 'step')} is a finite number."
    steps, values = series.steps[known], series.values[known]
    lowest, highest = int(np.argmin(values)), int(np.argmax(values))
    lost = len(series.values) - len(values)
    missing = f"; not finite at {count(lost, 'step')}" if lost else ""
    return (
        f"{name}: {number(values[0])} at step {steps[0]}, {number(values[-1])} at step {steps[-1]}; lowest"
        f" {number(values[lowest])} at step {steps[lowest]}, highest {number(values[highest])} at step"
        f" {steps[highest]}{missing}."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, text_columns: int = 1) -> str:
    """A table whose first cell of each row is its head. Cells are text; the caption may be "".

    Args:
        head: names of the columns.
        rows: cells, as many a row as there are columns.
        caption: what the table shows.
        text_columns: columns, from the first, that hold text; the others hold numbers.

    Returns:
        HTML.
    """
    side = ["" if place < text_columns else ' class="n"' for place in range(len(head))]
    top = "".join(f'<th scope="col"{css}>{escape(name)}</th>' for name, css in zip(head, side, strict=True))
    body = "".join(
        f'<tr><th scope="row"{side[0]}>{escape(cells[0])}</th>'
        + "".join(f"<td{css}>{escape(cell)}</td>" for cell, css in zip(cells[1:], side[1:], strict=True))
        + "</tr>"
        for cells in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _numbers(chart: Chart, lines: Mapping[str, Series]) -> str:
    every = np.unique(np.concatenate([series.steps for series in lines.values()]))
    shown = every[np.unique(np.linspace(0, len(every) - 1, min(MAX_ROWS, len(every))).round().astype(int))]
    by_step = [dict(zip(series.steps.tolist(), series.values.tolist(), strict=True)) for series in lines.values()]
    rows = [
        [str(step), *(number(values[step]) if step in values else "" for values in by_step)] for step in shown.tolist()
    ]
    which = "" if len(shown) == len(every) else f", {len(shown)} of {len(every)} logged steps"
    return table(["step", *lines], rows, caption=f"{chart.title} ({chart.unit}){which}", text_columns=0)

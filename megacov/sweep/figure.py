"""Draws a sweep: the objective, reward and entropy against each setting that it varies."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megacov.config.sweep import Objective, RewardObjective, SweepSection
from megacov.config.sweep_search import ListSearch, OptunaSearch
from megacov.monitor.compare import seed_interval
from megacov.monitor.figure_style import COLOURS, GREY, STYLE, save_figure
from megacov.monitor.visible_text import visible
from megacov.sweep.results import SettingResult, describe, find_best
from megacov.sweep.value import counted_values

MAX_COLUMNS = 5
"""Settings that are drawn side by side; the CSV file has all."""
_COLUMN_INCHES, _ROW_INCHES, _TICK_INCHES = 4.2, 2.9, 0.28
_LOG_SPAN = 8.0
_WIDEST_INCHES = 120.0  # a picture has at most 65535 pixels
_LONGEST_LABEL = 40


def write_figure(sweep: SweepSection, results: Sequence[SettingResult], path: Path) -> None:
    """Draw a column for each setting that varies, and a row for each of objective, reward and entropy.

    Points are means over the seeds that are done, bars their 95 % intervals, small points seeds; a ring marks the best.

    Args:
        sweep: the sweep.
        results: results, some of which have values.
        path: file to write, ending in .png.

    Raises:
        DataError: the picture cannot be written.
    """
    done = [each for each in results if each.values()]
    columns = _columns(sweep, done)
    rows = {"value": describe(sweep.objective), "reward": "reward", "entropy": "entropy (nats)"}
    if isinstance(sweep.objective, RewardObjective):
        del rows["reward"]
    best = find_best(results)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(figure_width(columns), len(rows) * _ROW_INCHES + 0.9), layout="constrained")
        FigureCanvasAgg(figure)
        grid: Any = figure.subplots(len(rows), len(columns), squeeze=False, sharex="col", sharey="row")
        for row, (what, label) in enumerate(rows.items()):
            grid[row][0].set_ylabel(label)
            for column, (name, places) in enumerate(columns):
                _draw(grid[row][column], done, places, what, best, sweep.objective)
                if row == len(rows) - 1:
                    _label_axis(grid[row][column], name, places)
        figure.suptitle(sweep.name, x=0.01, ha="left", fontweight="bold")
        note = "Points: means over seeds, with 95 % intervals.\nSmall: seeds. Ring: the best setting."
        figure.supxlabel(note, fontsize=8.5, color=GREY, x=0.01, ha="left")
        save_figure(figure, path)


def figure_width(columns: Sequence[tuple[str, list[Any]]]) -> float:
    """Width of the picture in inches: room for each category, as far as a picture can be that wide.

    Args:
        columns: name of each column, and each result's place on its axis, which is text for a category.

    Returns:
        Inches.
    """
    widest = max((_COLUMN_INCHES, *(len(places) * _TICK_INCHES for _, places in columns if isinstance(places[0], str))))
    return len(columns) * min(widest, _WIDEST_INCHES / len(columns)) + 0.6


def _columns(sweep: SweepSection, done: Sequence[SettingResult]) -> list[tuple[str, list[Any]]]:
    """Name of each column, and each result's place on its axis: a number, or text for a category."""
    if isinstance(sweep.search, ListSearch):
        return [("setting", [each.setting.name for each in done])]
    columns: list[tuple[str, list[Any]]] = []
    for key in sweep.searched_keys:
        values = [each.setting.changes[key] for each in done]
        is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        columns.append((key, values if is_number else [_text(value) for value in values]))
    if isinstance(sweep.search, OptunaSearch):
        columns.insert(0, ("trial", [int(each.setting.name.rpartition("_")[2]) for each in done]))
    return columns[:MAX_COLUMNS]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _draw(
    axes: Axes,
    done: Sequence[SettingResult],
    places: Sequence[Any],
    what: str,
    best: SettingResult | None,
    objective: Objective,
) -> None:
    categories = list(dict.fromkeys(places)) if isinstance(places[0], str) else []
    for result, place in zip(done, places, strict=True):
        at = categories.index(place) if categories else place
        seeds = [value for each in result.values() if (value := getattr(each, what)) is not None]
        if not seeds:
            continue
        counted = counted_values(seeds, objective) if what == "value" else seeds
        mean = sum(counted) / len(counted)
        if len(seeds) > 1:
            axes.plot([at] * len(seeds), seeds, ".", color=COLOURS[0], alpha=0.35, markersize=5)
        interval = seed_interval(counted)
        if interval is not None:
            axes.plot([at, at], [interval.low, interval.high], color=COLOURS[0], linewidth=1, alpha=0.6)
        axes.plot([at], [mean], "o", color=COLOURS[0], markersize=7, markeredgecolor="white")
        if result is best:
            axes.plot([at], [mean], "o", color=COLOURS[1], markersize=13, markerfacecolor="none", markeredgewidth=1.8)


def _label_axis(axes: Axes, name: str, places: Sequence[Any]) -> None:
    axes.set_xlabel(name)
    if isinstance(places[0], str):
        categories = list(dict.fromkeys(places))
        labels = [
            visible(each if len(each) <= _LONGEST_LABEL else f"{each[:_LONGEST_LABEL]}...") for each in categories
        ]
        is_long = max(map(len, labels)) * len(labels) > 36
        rotation, side = (60, "right") if is_long else (0, "center")
        axes.set_xticks(range(len(labels)), labels, rotation=rotation, ha=side, parse_math=False)
    elif name != "trial" and min(places) > 0 and max(places) / min(places) >= _LOG_SPAN and not _is_even(places):
        axes.set_xscale("log")


def _is_even(places: Sequence[float]) -> bool:
    """Whether distinct values are equally far apart, as on a linear scale."""
    values = sorted(set(places))
    gaps = [after - before for before, after in itertools.pairwise(values)]
    return all(math.isclose(gap, gaps[0], rel_tol=1e-6) for gap in gaps)

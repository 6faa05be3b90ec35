"""Draws the law of one or several runs: reward against entropy with the fitted curve, and the residuals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from megacov.monitor.entropy_law.estimate import Floats
from megacov.monitor.entropy_law.law import EntropyLaw
from megacov.monitor.entropy_law.sources import Source
from megacov.monitor.figure_style import COLOURS, GREY, MARKERS, STYLE, save_figure

SIZE_INCHES = (11.0, 4.6)
_CURVE_POINTS = 200


def write_figure(fits: Sequence[tuple[Source, EntropyLaw]], path: Path) -> None:
    """Draw every run that has a fit in a colour of its own.

    Args:
        fits: runs with their laws.
        path: file to write, ending in .png.

    Raises:
        DataError: the picture cannot be written.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES, layout=ConstrainedLayoutEngine(wspace=0.05))
        FigureCanvasAgg(figure)
        law_axes, residual_axes = figure.subplots(1, 2, width_ratios=(3, 2))
        _label(law_axes, "Reward against entropy", "entropy (nats)", "reward")
        _label(residual_axes, "Residuals", "step", "observed minus fitted reward")
        residual_axes.axhline(0, color=GREY, linewidth=1)
        for index, (source, law) in enumerate(fits):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            _draw(law_axes, residual_axes, source, law, colour, marker)
        law_axes.set_xlim(left=0)
        handles, labels = law_axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper left", ncols=1, frameon=False)
        figure.supxlabel(
            "Line: R = -a exp(H) + b, with its 95 % band. Bar at entropy 0: ceiling b - a. Dashed: fit to the filled "
            "points, the first of the run.",
            fontsize=8.5,
            color=GREY,
            x=0.01,
            ha="left",
        )
        save_figure(figure, path)


def _draw(law_axes: Axes, residual_axes: Axes, source: Source, law: EntropyLaw, colour: str, marker: str) -> None:
    is_finite = np.isfinite(source.curve.entropies) & np.isfinite(source.curve.rewards)
    steps, entropies, rewards = (
        source.curve.steps[is_finite],
        source.curve.entropies[is_finite],
        source.curve.rewards[is_finite],
    )
    name = f"{source.name}: {law.verdict.outcome}"
    num_early = law.early.num_points if law.early is not None else 0
    for axes, x, y in ((law_axes, entropies, rewards), (residual_axes, steps, _residuals(law, entropies, rewards))):
        axes.plot(x[num_early:], y[num_early:], marker, markersize=4, color=colour, alpha=0.5, fillstyle="none")
        axes.plot(x[:num_early], y[:num_early], marker, markersize=4, color=colour, alpha=0.8)
    if law.curve is None:
        law_axes.plot([], [], marker, color=colour, label=name)
        return
    grid = np.linspace(0.0, float(entropies.max()), _CURVE_POINTS)
    bounds = [law.curve.interval(-float(np.exp(entropy)), 1.0) for entropy in grid]
    law_axes.plot(grid, law.curve.predict(grid), color=colour, linewidth=2, marker=None, label=name)
    law_axes.fill_between(
        grid, [bound.low for bound in bounds], [bound.high for bound in bounds], color=colour, alpha=0.15, linewidth=0
    )
    ceiling = law.intervals.ceiling
    law_axes.plot([0, 0], [ceiling.low, ceiling.high], color=colour, linewidth=4, solid_capstyle="butt", clip_on=False)
    if law.early is not None:
        law_axes.plot(
            grid, law.early.b - law.early.a * np.exp(grid), color=colour, linewidth=1.2, linestyle=(0, (4, 3))
        )


def _residuals(law: EntropyLaw, entropies: Floats, rewards: Floats) -> Floats:
    return np.full(len(rewards), np.nan) if law.curve is None else rewards - law.curve.predict(entropies)


def _label(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)

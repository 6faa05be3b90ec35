"""Draws a comparison of runs: reward, entropy, and entropy against reward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from megacov.monitor.compare import SMOOTHING_WINDOW, Run, smooth, summarise
from megacov.monitor.figure_style import COLOURS, GREY, MARKERS, STYLE, save_figure

SIZE_INCHES = (13.2, 4.6)


def write_figure(groups: Sequence[Sequence[Run]], *, reward: float, path: Path) -> None:
    """Draw groups of runs: seeds as thin lines and their mean as a thick one.

    Args:
        groups: runs as `group_runs` returns them; each group has its own colour.
        reward: target at which entropies are compared.
        path: file to write, ending in .png.

    Raises:
        DataError: the picture cannot be written.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES, layout=ConstrainedLayoutEngine(wspace=0.05))
        FigureCanvasAgg(figure)
        reward_axes, entropy_axes, fair_axes = figure.subplots(1, 3)
        fair_axes.sharey(entropy_axes)
        _label(reward_axes, "Reward", "step", "mean reward")
        _label(entropy_axes, "Entropy", "step", "entropy (nats, log scale)")
        _label(fair_axes, "Entropy at equal reward", "mean reward", "entropy (nats, log scale)")
        reward_axes.axhline(reward, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        fair_axes.axvline(reward, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for index, group in enumerate(groups):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            _draw_curves(reward_axes, entropy_axes, fair_axes, group, colour)
            _mark_crossing(fair_axes, group, reward, colour, marker)
        _use_log_scale(entropy_axes)
        handles, labels = fair_axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 3), frameon=False)
        figure.supxlabel(
            f"Thin: seeds. Thick: mean over seeds, centred moving average of {SMOOTHING_WINDOW} logged steps."
            f" Markers: entropy where the reward first reaches {reward:g} (dashed), mean over seeds.",
            fontsize=8.5,
            color=GREY,
            x=0.01,
            ha="left",
        )
        save_figure(figure, path)


def _draw_curves(reward_axes: Axes, entropy_axes: Axes, fair_axes: Axes, group: Sequence[Run], colour: str) -> None:
    for run in group:
        thin: dict[str, Any] = {"color": colour, "linewidth": 0.8, "alpha": 0.3}
        reward_axes.plot(run.steps, run.rewards, **thin)
        entropy_axes.plot(run.steps, run.entropies, **thin)
        fair_axes.plot(smooth(run.rewards), smooth(run.entropies), **thin)
    steps, rewards, entropies = _mean_curves(group)
    reward_axes.plot(steps, rewards, color=colour, linewidth=2)
    entropy_axes.plot(steps, entropies, color=colour, linewidth=2)
    fair_axes.plot(rewards, entropies, color=colour, linewidth=2)


def _mean_curves(group: Sequence[Run]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Steps that all runs have logged, and the smoothed means there."""
    steps = reduce(np.intersect1d, (run.steps for run in group))
    rewards, entropies = (
        np.mean([curve[np.isin(run.steps, steps)] for run, curve in zip(group, curves, strict=True)], axis=0)
        for curves in ([run.rewards for run in group], [run.entropies for run in group])
    )
    return steps, smooth(rewards), smooth(entropies)


def _mark_crossing(axes: Axes, group: Sequence[Run], reward: float, colour: str, marker: str) -> None:
    """Mark the mean entropy at the target. The value goes into the legend, where labels cannot overlap."""
    summary = summarise(group, reward)
    name = group[0].label + (f" ({len(group)} seeds)" if len(group) > 1 else "")
    style: dict[str, Any] = {
        "color": colour,
        "marker": marker,
        "markersize": 9,
        "markeredgecolor": "white",
        "linewidth": 2,
    }
    if summary.entropy_at_reward is None:
        axes.plot([], [], label=f"{name}: reward {reward:g} not reached", **style)
    else:
        label = f"{name}: {summary.entropy_at_reward:.2g} nats at reward {reward:g}"
        axes.plot([reward], [summary.entropy_at_reward], label=label, **style)


def _label(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _use_log_scale(axes: Axes) -> None:
    """Plain numbers at 1, 2 and 5 of each decade, and closer where the entropies differ little."""
    axes.set_yscale("log")
    lowest, highest = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest > 5 * lowest else (1, 1.5, 2, 3, 4, 5, 6, 7, 8)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())

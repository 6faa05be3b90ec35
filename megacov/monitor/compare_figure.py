"""Draws a comparison of runs: reward, entropy, entropy at equal reward, the entropy law, and pass@k."""

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

from megacov.monitor.compare import SMOOTHING_WINDOW, Run, smooth, summarise
from megacov.monitor.compare_law import GroupLaw
from megacov.monitor.compare_panels import draw_law, draw_pass_at_k, draw_seed_band
from megacov.monitor.compare_scores import common_scores
from megacov.monitor.figure_style import COLOURS, GREY, MARKERS, STYLE, save_figure

SIZE_INCHES, WIDE_INCHES = (10.6, 8.8), (13.2, 8.8)
"""Without and with pass@k."""

_SHORT_LABEL = 34  # letters of which three labels fit side by side


def write_figure(groups: Sequence[Sequence[Run]], laws: Sequence[GroupLaw], *, reward: float, path: Path) -> None:
    """Draw groups of runs: seeds as thin lines, their mean as a thick one, its 95 % interval over the seeds as a band.

    Args:
        groups: runs as `group_runs` returns them; each group has its own colour.
        laws: the entropy law of each group.
        reward: target at which entropies are compared.
        path: file to write, ending in .png.

    Raises:
        DataError: the picture cannot be written.
    """
    sets, ks = common_scores([run.pass_at_k for group in groups for run in group if run.pass_at_k])
    mosaic = "RREEFF;LLLKKK" if ks else "RE;FL"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=WIDE_INCHES if ks else SIZE_INCHES, layout=ConstrainedLayoutEngine(wspace=0.05))
        FigureCanvasAgg(figure)
        axes = figure.subplot_mosaic(mosaic)
        axes["F"].sharey(axes["E"])
        _label(axes["R"], "Reward", "step", "mean reward")
        _label(axes["E"], "Entropy", "step", "entropy (nats, log scale)")
        _label(axes["F"], "Entropy at equal reward", "mean reward", "entropy (nats, log scale)")
        _label(axes["L"], "Reward against entropy, with the fitted law", "entropy (nats)", "mean reward")
        axes["R"].axhline(reward, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes["F"].axvline(reward, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for index, (group, law) in enumerate(zip(groups, laws, strict=True)):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            _draw_curves(axes["R"], axes["E"], axes["F"], group, colour)
            _mark_crossing(axes["F"], group, reward, colour, marker)
            draw_law(axes["L"], group, law, colour)
            if ks:
                draw_pass_at_k(axes["K"], group, sets, ks, colour, marker)
        _use_log_scale(axes["E"])
        axes["L"].set_xlim(left=0)
        if ks:
            title = f"Mean of {len(sets)} sets" if len(sets) > 1 else sets[0]
            _label(axes["K"], f"pass@k: {title}", "k (responses, log scale)", "share of problems")
        handles, labels = axes["F"].get_legend_handles_labels()
        columns = 2 if any(len(label) > _SHORT_LABEL for label in labels) else 3
        figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), columns), frameon=False)
        figure.supxlabel(_caption(reward, has_scores=bool(ks)), fontsize=8.5, color=GREY, x=0.01, ha="left")
        save_figure(figure, path)


def _caption(reward: float, *, has_scores: bool) -> str:
    lines = [
        f"Thin: seeds. Thick: mean over seeds, centred moving average of {SMOOTHING_WINDOW} logged steps."
        " Bands: 95 % intervals over seeds.",
        f"Markers: entropy where the reward first reaches {reward:g} (dashed), mean over seeds.",
        "Law: R = -a exp(H) + b, with its 95 % band over seeds, or of the fit of a single run; bar at entropy 0: "
        "ceiling b - a. Dotted: the law does not hold there.",
    ]
    return "\n".join([*lines, *(["pass@k: at the last evaluation of each run."] if has_scores else [])])


def _draw_curves(reward_axes: Axes, entropy_axes: Axes, fair_axes: Axes, group: Sequence[Run], colour: str) -> None:
    for run in group:
        thin: dict[str, Any] = {"color": colour, "linewidth": 0.8, "alpha": 0.3}
        reward_axes.plot(run.steps, run.rewards, **thin)
        entropy_axes.plot(run.steps, run.entropies, **thin)
        fair_axes.plot(smooth(run.rewards), smooth(run.entropies), **thin)
    # At the steps that all seeds have logged.
    steps = reduce(np.intersect1d, (run.steps for run in group))
    rewards = [smooth(run.rewards[np.isin(run.steps, steps)]) for run in group]
    entropies = [smooth(run.entropies[np.isin(run.steps, steps)]) for run in group]
    draw_seed_band(reward_axes, steps, rewards, colour)
    draw_seed_band(entropy_axes, steps, entropies, colour)
    mean_reward, mean_entropy = np.mean(rewards, axis=0), np.mean(entropies, axis=0)
    reward_axes.plot(steps, mean_reward, color=colour, linewidth=2)
    entropy_axes.plot(steps, mean_entropy, color=colour, linewidth=2)
    fair_axes.plot(mean_reward, mean_entropy, color=colour, linewidth=2)


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

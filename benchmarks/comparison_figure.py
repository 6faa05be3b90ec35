"""The picture of benchmarks/comparison.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.comparison_plan import TaskSweeps
from benchmarks.comparison_results import LAST_STEPS, Method, mean, spread
from megacov.monitor.figure_style import COLOURS, GREY, MARKERS, STYLE, save_figure

_ROW_INCHES, _LEAST_INCHES, _PLANE_INCHES = 0.3, 2.0, 4.5


def write_figure(sweeps: TaskSweeps, methods: Sequence[Method], path: Path) -> None:
    """Draw a row for each method with its numbers, and reward against entropy with the runs that tuned.

    Args:
        sweeps: the sweeps of the task.
        methods: methods, some of which have final runs.
        path: file to write, ending in .png.

    Raises:
        DataError: the picture cannot be written.
    """
    done = [each for each in methods if each.count("done")]
    columns = {
        "reward": f"reward, last {LAST_STEPS} steps",
        "area": "area under reward",
        "entropy_at_reward": f"entropy at reward {sweeps.task.reward:g} (nats)",
        **{f"pass@{k}": f"pass@{k} at the end" for k in sweeps.task.pass_at},
    }
    height = max(len(done) * _ROW_INCHES + 1.4, _LEAST_INCHES)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(14.0, height + _PLANE_INCHES), layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subfigures(2, 1, height_ratios=[height, _PLANE_INCHES])
        panels: Any = upper.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, (name, label) in zip(panels, columns.items(), strict=True):
            _draw_rows(axes, done, name, label)
        panels[0].set_yticks(range(len(done)), [each.name for each in done])
        panels[0].invert_yaxis()
        _draw_plane(lower.subplots(1, 1), done)
        upper.suptitle(sweeps.name, x=0.01, ha="left", fontweight="bold")
        note = (
            "Large points: means over seeds of the best value, with the standard deviation."
            " Small points: seeds above, and below all values that were tried (one seed, fewer steps)."
        )
        lower.supxlabel(note, fontsize=8.5, color=GREY, x=0.01, ha="left")
        save_figure(figure, path)


def _draw_rows(axes: Axes, methods: Sequence[Method], name: str, label: str) -> None:
    for place, method in enumerate(methods):
        values = method.values(name)
        if not values:
            continue
        middle, width = mean(values), spread(values) or 0.0
        assert middle is not None
        axes.plot([middle - width, middle + width], [place, place], color=COLOURS[0], linewidth=1, alpha=0.6)
        axes.plot(values, [place] * len(values), ".", color=COLOURS[0], alpha=0.35, markersize=5)
        axes.plot([middle], [place], "o", color=COLOURS[0], markersize=6, markeredgecolor="white")
    axes.set_xlabel(label)


def _draw_plane(axes: Axes, methods: Sequence[Method]) -> None:
    """Area under the reward against the entropy at the end."""
    for place, method in enumerate(methods):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place // len(COLOURS) % len(MARKERS)]
        tried = [row.numbers for row in method.tuning if "area" in row.numbers]
        axes.plot(
            [row["entropy"] for row in tried],
            [row["area"] for row in tried],
            marker,
            color=colour,
            alpha=0.4,
            markersize=4,
        )
        entropy, area = mean(method.values("entropy")), mean(method.values("area"))
        assert entropy is not None and area is not None
        axes.plot(
            [entropy],
            [area],
            marker,
            color=colour,
            markersize=9,
            markeredgecolor="white",
            linestyle="",
            label=method.name,
        )
    axes.set_xlabel(f"entropy, last {LAST_STEPS} steps (nats)")
    axes.set_ylabel("area under reward")
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, ncols=1 if len(methods) < 9 else 2
    )

"""The picture of benchmarks/scaling.py: GPU-hours of a step by phase, which would be constant under perfect scaling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can distinguish; the small phases share the last one.
_COLOURS = {
    "rollout waited for": "#0072B2",
    "weight sync": "#D55E00",
    "old log-probs": "#56B4E9",
    "selection": "#F0E442",
    "update": "#009E73",
    "bubble": "#CC79A7",
    "gradients, parameters": "#E69F00",
}
_REST, _GREY = "entropy head, optimizer, checkpoint", "#777777"
# The type is Any because that of the keys differs between versions of matplotlib.
_STYLE: Any = {
    "font.size": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


def write_figure(by_mode: Mapping[str, Mapping[int, Mapping[str, float]]], *, path: Path) -> None:
    """Draw a panel for each mode.

    Args:
        by_mode: seconds by mode, then by number of GPUs, then by phase.
        path: file to write, ending in .png.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(by_mode), sharey=True, squeeze=False)[0]
        for axes, (mode, by_size) in zip(panels, by_mode.items(), strict=True):
            _draw(axes, mode, by_size)
        panels[0].set_ylabel("GPU-hours of a step")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100, format="png")


def _draw(axes: Axes, mode: str, by_size: Mapping[int, Mapping[str, float]]) -> None:
    axes.set_title(f"Trainer and servers {mode}")
    sizes, base = list(by_size), [0.0] * len(by_size)
    for name in [*_COLOURS, _REST]:
        seconds = [
            phases[name] if name in phases else sum(value for key, value in phases.items() if key not in _COLOURS)
            for phases in by_size.values()
        ]
        hours = [gpus * value / 3600 for gpus, value in zip(sizes, seconds, strict=True)]
        axes.bar([str(size) for size in sizes], hours, bottom=base, color=_COLOURS.get(name, _GREY), label=name)
        base = [low + high for low, high in zip(base, hours, strict=True)]
    for place, phases in enumerate(by_size.values()):
        axes.annotate(f"{sum(phases.values()):.0f} s", (place, base[place]), ha="center", va="bottom")
    axes.set_xlabel("GPUs")
    axes.grid(True, axis="y", color="#E6E6E6")

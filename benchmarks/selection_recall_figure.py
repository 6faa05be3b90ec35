"""The picture of benchmarks/selection_recall.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Series = Mapping[int, Sequence[float]]
"""Recall in each seed, by the number of micro-batches."""

# Okabe and Ito's colours, which colour-blind people can distinguish; in grey, the markers differ.
_COLOURS, _MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), ("o", "s", "^", "D")
_GREY = "#777777"
# The type is Any because that of the keys differs between versions of matplotlib.
_STYLE: Any = {
    "font.size": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
}


def write_figure(
    curves: Mapping[str, Mapping[str, Series]],
    overlap: Sequence[Sequence[float]],
    layouts: Sequence[str],
    *,
    path: Path,
) -> None:
    """Draw recall over micro-batches, with a panel for each order, and the overlap of layouts.

    Args:
        curves: recall by the order in which sequences are assigned to micro-batches, then by method.
        overlap: Jaccard overlap of each two layouts.
        layouts: names of the layouts.
        path: file to write, ending in .png.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(14.2, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(curves) + 1)
        for axes, (order, by_method) in zip(panels, curves.items(), strict=False):
            _draw_recall(axes, order, by_method)
        panels[0].set_ylabel("share of the globally selected tokens found")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=5, frameon=False)
        _draw_overlap(panels[-1], overlap, layouts)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, format="png")


def _draw_recall(axes: Axes, order: str, by_method: Mapping[str, Series]) -> None:
    axes.set_title(f"Micro-batches {order}")
    axes.axhline(1, color="black", linewidth=2, label="global selection, any layout")
    for index, (name, series) in enumerate(by_method.items()):
        counts, recalls = list(series), np.array(list(series.values()))
        colour = _COLOURS[index % len(_COLOURS)]
        axes.fill_between(counts, recalls.min(1), recalls.max(1), color=colour, alpha=0.2, linewidth=0)
        axes.plot(counts, recalls.mean(1), color=colour, marker=_MARKERS[index % len(_MARKERS)], label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(0, 1.05)
    axes.set_xlabel(f"micro-batches of an optimizer step ({counts[-1]} sequences)")
    axes.grid(True)


def _draw_overlap(axes: Axes, overlap: Sequence[Sequence[float]], layouts: Sequence[str]) -> None:
    axes.set_title("Two layouts, per micro-batch")
    image = axes.imshow(overlap, vmin=0, vmax=1, cmap="cividis")
    axes.set_xticks(range(len(layouts)), layouts, rotation=90, fontsize=8)
    axes.set_yticks(range(len(layouts)), layouts, fontsize=8)
    axes.set_xlabel("data-parallel ranks x sequences per micro-batch")
    axes.figure.colorbar(image, ax=axes, label="overlap (Jaccard), KL-Cov 2e-4")

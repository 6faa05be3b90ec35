"""The picture of benchmarks/controller_runs.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's colours, which colour-blind people can distinguish.
_COLOURS = ("#0072B2", "#D55E00", "#009E73")


def write_figure(
    entropies: Mapping[tuple[str, float], Sequence[NDArray[np.float64]]], *, changed_at: int, near: float, path: Path
) -> None:
    """Draw the entropy against the step, with a panel for each controlled setting.

    Args:
        entropies: nats of each seed's steps, by setting and target.
        changed_at: step after which the learning rate was doubled.
        near: half the width of the band around a target, as a share of it.
        path: file to write, ending in .png.
    """
    settings = list(dict.fromkeys(acts_on for acts_on, _ in entropies))
    with mpl.rc_context({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.2 * len(settings), 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        for axes, setting in zip(panels, settings, strict=True):
            targets = sorted(target for acts_on, target in entropies if acts_on == setting)
            for colour, target in zip(_COLOURS, targets, strict=False):
                axes.axhspan(target * (1 - near), target * (1 + near), color=colour, alpha=0.15, linewidth=0)
                for seed in entropies[setting, target]:
                    axes.plot(np.arange(1, len(seed) + 1), seed, color=colour, linewidth=0.9)
            axes.axvline(changed_at + 0.5, color="#777777", linestyle="--", linewidth=1)
            axes.text(
                changed_at + 2, 0.02, "twice the learning rate", color="#777777", transform=axes.get_xaxis_transform()
            )
            axes.set_title(f"Controller on {setting}", loc="left", fontweight="bold")
            axes.set_xlabel("step")
        panels[0].set_ylabel("entropy, nats")
        panels[0].set_ylim(0, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, format="png")

"""Panels of a comparison beside the curves: reward against entropy with the fitted law, and pass@k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from megacov.monitor.compare import Run, seed_interval
from megacov.monitor.compare_law import GroupLaw
from megacov.monitor.entropy_law.estimate import Floats

_CURVE_POINTS = 200


def draw_seed_band(axes: Axes, x: ArrayLike, seeds: Sequence[Sequence[float] | Floats], colour: str) -> None:
    """Draw the 95 % interval over seeds, where there are two or more.

    Args:
        axes: where to draw.
        x: [n] positions.
        seeds: [n] values of each seed.
        colour: of the algorithm.
    """
    bounds = [seed_interval(each) for each in zip(*seeds, strict=True)]
    low, high = [bound.low for bound in bounds if bound], [bound.high for bound in bounds if bound]
    if low:
        draw_band(axes, x, low, high, colour)


def draw_band(axes: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str) -> None:
    """Draw an interval, which can be huge, without making room for it: the lines alone decide what is shown."""
    with _same_limits(axes):
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


@contextmanager
def _same_limits(axes: Axes) -> Iterator[None]:
    before = axes.dataLim.frozen()
    yield
    axes.dataLim.set(before)


def draw_law(axes: Axes, group: Sequence[Run], law: GroupLaw, colour: str) -> None:
    """Draw the points of all seeds, and the mean curve with its interval where there is a fit.

    Args:
        axes: entropy in nats to the right, reward upwards.
        group: seeds of one algorithm.
        law: their law.
        colour: of the algorithm.
    """
    for run in group:
        axes.plot(run.entropies, run.rewards, ".", markersize=4, color=colour, alpha=0.35)
    if np.isnan(law.a):
        return
    fitted = [run for run, each in zip(group, law.laws, strict=True) if each.curve is not None]
    grid = np.linspace(0.0, max(float(run.entropies.max()) for run in fitted), _CURVE_POINTS)
    style: dict[str, Any] = {"linestyle": ":"} if law.is_refused else {}
    axes.plot(grid, law.predict(grid), color=colour, linewidth=2, **style)
    if law.is_refused:
        return
    draw_band(axes, grid, *law.band(grid), colour)
    ceiling = law.ceiling
    with _same_limits(axes):
        axes.plot([0, 0], [ceiling.low, ceiling.high], color=colour, linewidth=4, solid_capstyle="butt")


def draw_pass_at_k(
    axes: Axes, group: Sequence[Run], sets: Sequence[str], ks: Sequence[int], colour: str, marker: str
) -> None:
    """Draw the mean over the sets, for each seed and over the seeds.

    Args:
        axes: k to the right, share of problems upwards.
        group: seeds of one algorithm; those without evaluations are left out.
        sets: names of the sets of problems.
        ks: values of k that all sets have.
        colour: of the algorithm.
        marker: of the algorithm.
    """
    seeds = [[float(np.mean([run.pass_at_k[each, k] for each in sets])) for k in ks] for run in group if run.pass_at_k]
    if not seeds:
        return
    for seed in seeds:
        axes.plot(ks, seed, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(ks, np.mean(seeds, axis=0), color=colour, linewidth=2, marker=marker, markeredgecolor="white")
    draw_seed_band(axes, ks, seeds, colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.xaxis.set_minor_locator(NullLocator())

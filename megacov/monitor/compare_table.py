"""Renders a comparison of runs as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from megacov.monitor.compare import SMOOTHING_WINDOW, Run, Summary, entropy_ratio, summarise
from megacov.monitor.compare_law import GroupLaw
from megacov.monitor.entropy_law.estimate import Interval


def render_table(groups: Sequence[Sequence[Run]], *, baseline_group: Sequence[Run], reward: float) -> Table:
    """Render a row for each group of seeds, with a row for each of its runs below; a group of one has a single row.

    Args:
        groups: runs as `group_runs` returns them.
        baseline_group: the group whose entropy at equal reward divides the others'.
        reward: target at which entropies are compared.

    Returns:
        A table that fits 80 columns unless names are long.
    """
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=f"At reward {reward:g}: where it is first reached, reward and entropy averaged over"
        f" {SMOOTHING_WINDOW} logged steps (centred). First and last values are of single steps. Entropy in nats."
        f" Ratio: to {baseline_group[0].label}. +-: 95 % interval over seeds.",
        caption_justify="left",
    )
    table.add_column("run", overflow="fold", min_width=10)
    for heading in ("steps", "reward", "entropy", "fall", f"at reward\n{reward:g}", "at\nstep", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    baseline = summarise(baseline_group, reward)
    for group in groups:
        if len(group) == 1:
            table.add_row(group[0].name, *_render_cells(summarise(group, reward), baseline), style="bold")
        else:
            name = f"{group[0].label} ({len(group)} seeds)"
            table.add_row(name, *_render_cells(summarise(group, reward), baseline), style="bold")
            for run in group:
                table.add_row(f"  seed {run.seed}", *_render_cells(summarise([run], reward), baseline), style="dim")
    return table


def render_law_table(groups: Sequence[Sequence[Run]], laws: Sequence[GroupLaw]) -> Table:
    """Render the entropy law of each group in a row, with what speaks against it below.

    Args:
        groups: runs as `group_runs` returns them.
        laws: the entropy law of each group.

    Returns:
        A table that fits 80 columns unless names are long.
    """
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="R = -a exp(H) + b; the ceiling b - a is the reward at entropy 0. Means over seeds, with 95 % intervals"
        " over seeds, or of the fit of a single run. `megacov predict` tells more.",
        caption_justify="left",
    )
    table.add_column("entropy law", overflow="fold", min_width=10)
    for heading in ("a", "b", "ceiling", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for group, law in zip(groups, laws, strict=True):
        cells = [_number(law.a), _number(law.b), _number(law.b - law.a), _interval(law.ceiling)]
        table.add_row(group[0].label, *cells, "\n".join([law.outcome, *law.reasons]))
    return table


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _interval(interval: Interval) -> str:
    return "-" if math.isnan(interval.low) else f"{interval.low:.3g} to {interval.high:.3g}"


def _render_cells(summary: Summary, baseline: Summary) -> list[str]:
    """Every column but the first."""
    ratio = entropy_ratio(summary, baseline)
    at_reward = "not reached" if summary.entropy_at_reward is None else f"{summary.entropy_at_reward:.3f}"
    if 0 < summary.num_reached < summary.num_runs:
        at_reward += f" ({summary.num_reached} of {summary.num_runs})"
    if summary.entropy_interval is not None:
        at_reward += f"\n+- {(summary.entropy_interval.high - summary.entropy_interval.low) / 2:.2g}"
    return [
        f"{summary.num_steps:.0f}",
        f"{summary.first_reward:.2f} to {summary.last_reward:.2f}",
        f"{summary.first_entropy:.3f} to {summary.last_entropy:.3f}",
        f"{summary.fall_factor:.1f}x",
        at_reward,
        "-" if summary.crossing_step is None else f"{summary.crossing_step:.0f}",
        "-" if ratio is None else f"{ratio:.2f}x",
    ]

"""Renders a comparison of runs as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from megacov.monitor.compare import SMOOTHING_WINDOW, Run, Summary, entropy_ratio, summarise


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
        f" Ratio: to {baseline_group[0].label}.",
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


def _render_cells(summary: Summary, baseline: Summary) -> list[str]:
    """Every column but the first."""
    ratio = entropy_ratio(summary, baseline)
    at_reward = "not reached" if summary.entropy_at_reward is None else f"{summary.entropy_at_reward:.3f}"
    if 0 < summary.num_reached < summary.num_runs:
        at_reward += f" ({summary.num_reached} of {summary.num_runs})"
    return [
        f"{summary.num_steps:.0f}",
        f"{summary.first_reward:.2f} to {summary.last_reward:.2f}",
        f"{summary.first_entropy:.3f} to {summary.last_entropy:.3f}",
        f"{summary.fall_factor:.1f}x",
        at_reward,
        "-" if summary.crossing_step is None else f"{summary.crossing_step:.0f}",
        "-" if ratio is None else f"{ratio:.2f}x",
    ]

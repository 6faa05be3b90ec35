"""`megacov compare`: tables and a picture of several runs: entropy at equal reward, the entropy law, pass@k."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from megacov.errors import DataError

_LOG_WIDTH = 120
"""Columns of the table where there is no terminal."""


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", show_default=False)],
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Run folder whose algorithm the others are compared with; default: the first."
        ),
    ] = None,
    reward: Annotated[float, typer.Option(help="Mean reward at which entropies are compared.")] = 0.8,
    output: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path("compare.png"),
) -> None:
    """Compare runs by reward, entropy, the law between them and pass@k: tables, and a PNG.

    Seeds (runs named *_seed<k>) are taken together, with 95 % intervals over them.
    """
    from rich.console import Console
    from rich.progress import track

    from megacov.monitor.compare import group_runs, read_run
    from megacov.monitor.compare_figure import write_figure
    from megacov.monitor.compare_law import fit_group
    from megacov.monitor.compare_table import render_law_table, render_table
    from megacov.monitor.visible_text import visible

    if not math.isfinite(reward):
        raise DataError(f"--reward is {reward}: give the reward at which entropies are compared, such as 0.8.")
    console = Console()
    if not console.is_terminal:
        console = Console(width=_LOG_WIDTH)
    baseline = baseline or runs[0]
    directories = {directory.resolve(): directory for directory in [*runs, baseline]}
    reading = track(
        directories.items(), "Reading runs", console=console, transient=True, disable=not console.is_terminal
    )
    run_by_path = {path: read_run(directory) for path, directory in reading}
    for problem in dict.fromkeys(each for run in run_by_path.values() for each in run.problems):
        console.print(f"warning: {visible(problem)}", soft_wrap=True, highlight=False, markup=False)
    groups = group_runs(run_by_path.values())
    baseline_group = next(group for group in groups if run_by_path[baseline.resolve()] in group)
    console.print(render_table(groups, baseline_group=baseline_group, reward=reward))
    laws = [fit_group(group) for group in groups]
    console.print(render_law_table(groups, laws))
    write_figure(groups, laws, reward=reward, path=output)
    console.print(f"Picture: {output}", soft_wrap=True, highlight=False)

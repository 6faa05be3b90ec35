"""megacov check: batches, layout and memory of a run, computed on a login node before the run is queued."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacov.config import dump_config, load_config
from megacov.errors import ConfigError

_LOG_WIDTH = 120
"""Columns of the tables where there is no terminal."""


def check(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as in parallel.data=2.")] = None,
    suggest: Annotated[bool, typer.Option("--suggest", help="Also show layouts that fit, fastest first.")] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="Also show every setting, as YAML.")] = False,
) -> None:
    """Show a run's batches, its layout on nodes, and the memory of each GPU. Needs neither GPU nor torch.

    Exits with 2 if it does not fit.
    """
    from rich.console import Console

    from megacov.cli.check_plan import plan_run, problems
    from megacov.cli.check_remarks import remarks
    from megacov.cli.check_suggest import render_advice, render_unplanned
    from megacov.cli.check_tables import render_plan
    from megacov.cli.loss import check_imported_loss

    run = load_config(config, overrides or [])
    check_imported_loss(run)
    if resolved:
        print(dump_config(run))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=_LOG_WIDTH, highlight=False)
    try:
        plan = plan_run(run)
    except ConfigError:
        if suggest:
            console.print(render_unplanned(run))
        raise
    console.print(render_plan(plan))
    for remark in remarks(plan):
        console.print(f"warning: {remark}", soft_wrap=True, markup=False)
    if suggest:
        console.print(render_advice(plan))
    found = list(problems(plan))
    if found:
        raise ConfigError(" ".join(found))
    console.print("The run fits.")

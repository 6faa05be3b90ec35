"""megacov check: batches, layout and memory of a run, computed on a login node before the run is queued."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from megacov.config import dump_config, load_config
from megacov.errors import ConfigError, DataError, MegacovError

_LOG_WIDTH = 120
"""Columns of the tables where there is no terminal."""


def check(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as in parallel.data=2.")] = None,
    suggest: Annotated[bool, typer.Option("--suggest", help="Also show layouts that fit, fastest first.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also import what settings name, and open tokenizer and prompts.")
    ] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="Also show every setting, as YAML.")] = False,
) -> None:
    """Show a run's batches, layout, and memory of each GPU, and what is wrong with it. Needs neither GPU nor torch.

    Exits with 2 if the run is impossible, or with 3 if that is due to its data or its model.
    """
    from rich.console import Console

    from megacov.cli.check_suggest import render_advice, render_unplanned
    from megacov.cli.check_tables import render_plan
    from megacov.cli.checks import Subject, find_remarks, refuse_impossible
    from megacov.cli.deep import look_deeper
    from megacov.cli.model_source import with_local_model

    run = load_config(config, overrides or [])
    if resolved:
        print(dump_config(run))
    with suppress(DataError):  # the plan has the same error, beside what else is wrong
        run, _ = with_local_model(run, downloads=False)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=_LOG_WIDTH, highlight=False)
    subject = Subject(run, "check", is_deep=deep)
    found, plan = find_remarks(subject), subject.plan
    if isinstance(plan, MegacovError):
        if suggest and isinstance(plan, ConfigError):
            console.print(render_unplanned(run))
        refuse_impossible(found)
        raise plan
    console.print(render_plan(plan))
    found += look_deeper(run) if deep else []
    for remark in found:
        if remark.severity != "impossible":
            console.print(f"{remark.severity}: {remark.sentence}", soft_wrap=True, markup=False)
    if suggest:
        console.print(render_advice(plan))
    refuse_impossible(found)
    is_complete = not any(remark.severity == "not looked at" for remark in found)
    console.print("The run fits." if is_complete else "The run fits, as far as has been looked at.")

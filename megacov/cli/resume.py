"""megacov resume: continue a run from its newest good checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from megacov.cli.train import run_ranks
from megacov.config import load_config
from megacov.errors import ConfigError, DataError


def resume(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as in parallel.data=2.")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="A setting that may differ from the checkpoint, as in optimizer.lr; may be repeated."),
    ] = None,
) -> None:
    """Continue a run from its newest good checkpoint, in any layout."""
    if not (run / "config.yaml").is_file():
        raise DataError(f"{run} has no config.yaml: give the folder of a run, such as runs/NAME.")
    directory = f"run.directory={run}"
    if any(override.partition("=")[0].strip() == "run.directory" for override in overrides or []):
        raise ConfigError("run.directory is the folder that is resumed: remove the override.")
    config = load_config(run / "config.yaml", [*(overrides or []), directory])
    if config.checkpoint.every == 0 and not (run / "checkpoints").is_dir():
        raise DataError(f"{run} has no checkpoints, since checkpoint.every is 0: begin the run again.")
    allowed = [word for name in allow or [] for word in ("--allow", name)]
    command = [sys.executable, "-m", "megacov", "resume", str(run), *(overrides or []), *allowed]
    run_ranks(config, command, resumed_with=tuple(allow or ()))

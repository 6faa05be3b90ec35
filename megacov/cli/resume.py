"""megacov resume: continue a run from its newest good checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from megacov.checkpoint.finished import read_finished
from megacov.cli.train import run_ranks
from megacov.config import RunConfig, load_config, write_override
from megacov.config.resume import too_few_steps
from megacov.errors import ConfigError, DataError
from megacov.launch import rank_from_environment


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
    directory = write_override("run.directory", str(run))
    if any(override.partition("=")[0].strip() == "run.directory" for override in overrides or []):
        raise ConfigError("run.directory is the folder that is resumed: remove the override.")
    config = load_config(run / "config.yaml", [*(overrides or []), directory])
    if config.checkpoint.every == 0 and not (run / "checkpoints").is_dir():
        raise DataError(f"{run} has no checkpoints, since checkpoint.every is 0: begin the run again.")
    if _is_finished(run, config):
        return
    allowed = [word for name in allow or [] for word in ("--allow", name)]
    command = [sys.executable, "-m", "megacov", "resume", str(run), *(overrides or []), *allowed]
    run_ranks(config, command, resumed_with=tuple(allow or ()))


def _is_finished(run: Path, config: RunConfig) -> bool:
    """Whether the run has ended with as many steps as are asked for; raises ConfigError if it has done more."""
    done = read_finished(run)
    if done is None or done < config.run.steps:
        return False
    if done > config.run.steps:
        raise ConfigError(too_few_steps(config, done=done))
    place = rank_from_environment()
    if place is None or place.rank == 0:
        print(f"megacov: {run} has finished: all {done} steps of run.steps are done. To train on, give run.steps=N.")
    return True

"""megacov train: one training run, on ranks of this machine or as a rank that torchrun or srun started."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from megacov.checkpoint.lock import find_holder
from megacov.cli.checks import Subject, find_remarks, refuse_impossible, show_remarks
from megacov.cli.deep import look_at_loss
from megacov.cli.model_source import with_local_model
from megacov.cli.selection_plan import kept_positions
from megacov.config import RunConfig, load_config
from megacov.data.files import local_path
from megacov.errors import ConfigError, DataError
from megacov.launch import (
    PARENT_PID_VARIABLE,
    RankEnvironment,
    die_with_parent,
    rank_from_environment,
    run_local_ranks,
    start_heartbeat,
)
from megacov.launch.output import keep_output
from megacov.launch.process import FOLLOWED_PID_VARIABLE, follow_parent
from megacov.monitor.run_end import settle_end
from megacov.trainer.prompts import paths_of

# Seconds that ranks need beyond their own grace to close everything.
_CLOSING_S = 10.0


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as in run.steps=5.")] = None,
) -> None:
    """Train a policy. Starts its own ranks unless torchrun or srun has started them."""
    command = [sys.executable, "-m", "megacov", "train", str(config), *(overrides or [])]
    run_ranks(load_config(config, overrides or []), command, resumed_with=None)


def run_ranks(config: RunConfig, command: Sequence[str], *, resumed_with: tuple[str, ...] | None) -> None:
    """Be a rank of the run, or start its ranks and wait for them.

    Args:
        config: configuration that has passed the rules.
        command: command that starts a rank.
        resumed_with: settings that may differ from the checkpoint of a resumed run; None for a new run.

    Raises:
        MegacovError: the user has made a mistake, or a part of the run has failed.
        SystemExit: this process has started ranks, and ends with their exit code.
    """
    keep_output(config.run.directory.absolute() / "logs" / "output.log")
    place = rank_from_environment()
    if place is None and FOLLOWED_PID_VARIABLE in os.environ:
        follow_parent(int(os.environ[FOLLOWED_PID_VARIABLE]))
    config, overrides = with_local_model(config, place)
    if place is None or (place.rank == 0 and PARENT_PID_VARIABLE not in os.environ):
        found = find_remarks(Subject(config, "train" if resumed_with is None else "resume"))
        refuse_impossible(found)
        show_remarks(found)
    elif place.local_rank == 0:  # each node has file systems of its own
        check_files(config)
    if place is None:
        refuse_impossible(look_at_loss(config))
        grace_s = config.checkpoint.grace_s + _CLOSING_S if config.checkpoint.every > 0 else _CLOSING_S
        hang_s = config.parallel.hang_s
        started = time.time()
        code = run_local_ranks([*command, *overrides], num_ranks=config.world_size, leave_s=grace_s, hang_s=hang_s)
        _note_end(config.run.directory, code, started=started)
        raise SystemExit(code)
    _train_as_rank(config, place, resumed_with)


def _note_end(run_folder: Path, code: int, *, started: float) -> None:
    """Write down the exit code, if these ranks and no others have held the run."""
    holder = find_holder(run_folder)
    if holder is not None and not holder.is_held and holder.since >= started:
        settle_end(run_folder, code, since=started)


def _train_as_rank(config: RunConfig, place: RankEnvironment, resumed_with: tuple[str, ...] | None) -> None:
    if PARENT_PID_VARIABLE in os.environ:
        die_with_parent(int(os.environ[PARENT_PID_VARIABLE]))
    start_heartbeat()
    if place.world_size != config.world_size:
        raise ConfigError(
            f"{place.world_size} ranks were started, and parallel.tensor x pipeline x context x data is "
            f"{config.world_size}: start that many, or change the layout."
        )
    from megacov.trainer.build import Resumption
    from megacov.trainer.loop import train_rank

    planned = kept_positions(config) if place.rank == 0 else None
    resumption = None if resumed_with is None else Resumption(resumed_with)
    train_rank(config, place, resumption=resumption, kept_positions=planned)


def check_files(config: RunConfig) -> None:
    """Look for the model and the prompts before ranks are started and torch is imported.

    Args:
        config: configuration that has passed the rules.

    Raises:
        DataError: there is no such model or prompt file.
    """
    if not (config.model.path / "config.json").is_file():
        raise DataError(f"model.path is {config.model.path}, which is not a model folder: it has no config.json.")
    for setting, given in paths_of(config):
        if (path := local_path(given)) is not None and not path.exists() and not any(sign in given for sign in "*?["):
            raise DataError(f"{setting} is {path}, and there is no such file: correct data.path.")

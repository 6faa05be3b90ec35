"""The folder of a run: its resolved configuration, TensorBoard logs, samples and server logs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from megacov.checkpoint.lock import RunLock
from megacov.checkpoint.occupant import look_at_run_folder
from megacov.config import RunConfig, dump_config
from megacov.data.files import local_path
from megacov.errors import CheckpointError, DataError
from megacov.files import write_atomically
from megacov.weight_sync.folder_owner import check_weights_folder, own_weights_folder


def open_run_folder(config: RunConfig, stack: ExitStack, *, is_resumed: bool) -> RunLock:
    """Create and lock the run folder and write the configuration into it. An earlier run with its name is moved aside.

    What a start that failed before its first step has left is not worth a folder: the new run takes its place.

    Args:
        config: resolved configuration.
        stack: owner of the lock from now on.
        is_resumed: whether to continue the run in the folder. Then the folder is only locked, because its configuration
            has not been accepted yet.

    Returns:
        The lock of the folder.

    Raises:
        DataError: the folder cannot be written, holds something else than a run, or is in use, or weight_sync.directory
            belongs to another run.
    """
    folder = config.run.directory
    check_weights_folder(config, is_resumed=is_resumed)
    if not is_resumed:
        look_at_run_folder(folder)  # before the lock, which would be written into a folder of something else
    lock = stack.enter_context(RunLock(folder))
    if is_resumed:
        own_weights_folder(config, stack)
        return lock
    try:
        occupant = look_at_run_folder(folder)
        if occupant == "a start":
            for events in (folder / "tensorboard").glob("events.out.tfevents.*"):
                events.unlink()
        if occupant == "a run":
            aside = next(path for i in count(1) if not (path := folder.with_name(f"{folder.name}.{i}")).exists())
            folder.rename(aside)
            print(f"megacov: the earlier run in {folder} is now {aside}", flush=True)
            lock = stack.enter_context(RunLock(folder))
    except OSError as error:
        raise DataError(f"run.directory {folder} cannot be moved: {error.strerror}.") from error
    write_config(config)
    own_weights_folder(config, stack)
    return lock


def find_run_folder(config: RunConfig, lock: RunLock) -> Path:
    """Find the run folder, which a user may have renamed while the run goes on. Rank 0 only.

    A folder that was deleted is made again with the configuration, so that the run can be resumed from it.

    Args:
        config: resolved configuration.
        lock: lock of the folder.

    Returns:
        The folder to save to.

    Raises:
        CheckpointError: the folder is gone and cannot be made again.
    """
    folder = lock.find_folder()
    if folder is not None:
        return folder
    print(f"megacov: warning: {config.run.directory} is gone; checkpoints go to a new folder of that name.", flush=True)
    try:
        write_config(config)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return config.run.directory


def write_config(config: RunConfig) -> None:
    """Write the configuration into the folder of its run; raises DataError if that fails."""
    folder = config.run.directory
    try:
        for name in ("tensorboard", "samples", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.yaml", dump_config(with_absolute_paths(config)), is_synced=True)
    except OSError as error:
        raise DataError(f"run.directory {folder} cannot be written: {error.strerror}.") from error


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths, so that a run can be resumed from any working directory."""
    keys = {
        "run": ("directory",),
        "model": ("path", "config_file"),
        "rollout": ("addresses_file", "keys_file"),
        "weight_sync": ("directory",),
    }
    changed = {}
    for section, names in keys.items():
        before = getattr(config, section)
        paths = {name: getattr(before, name) for name in names}
        changed[section] = before.model_copy(update={name: path and path.absolute() for name, path in paths.items()})
    evaluation = config.evaluation
    changed["evaluation"] = evaluation.model_copy(
        update={
            "suite": os.path.abspath(evaluation.suite)
            if evaluation.suite and evaluation.names_file
            else evaluation.suite,
            "data": evaluation.data and evaluation.data.absolute(),
        }
    )
    data = config.data
    sources = tuple(each.model_copy(update={"path": _absolute(each.path)}) for each in data.sources)
    path = None if data.path is None else _absolute(data.path)
    changed["data"] = data.model_copy(update={"path": path, "sources": sources})
    return config.model_copy(update=changed)


def _absolute(paths: Sequence[str]) -> tuple[str, ...]:
    """Absolute paths; addresses stay as they are."""
    return tuple(path if local_path(path) is None else str(Path(path).absolute()) for path in paths)

"""One run owns a folder of weights: owner.json names it, and a lock holds the folder while the run goes on."""

from __future__ import annotations

import json
import re
import secrets
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from megacov.checkpoint.finished import read_finished
from megacov.checkpoint.lock import RunLock, find_holder
from megacov.checkpoint.store import CheckpointStore
from megacov.config import RunConfig
from megacov.errors import DataError
from megacov.files import write_atomically
from megacov.json_text import JsonError, read_json

OWNER_NAME = "owner.json"
RUN_ID_NAME = "run_id"

_SETTING = "weight_sync.directory"
_VERSION_FOLDER = re.compile(r"v\d+")


@dataclass(frozen=True)
class FolderOwner:
    """The run that writes to a folder.

    run_id: random text that the run keeps under whatever name its folder has.
    run: path of the run folder when it took the folder.
    """

    run_id: str
    run: str

    @classmethod
    def of_run(cls, run_folder: Path) -> FolderOwner:
        """Identify a run by its folder. A new run, or one that an older version of megacov began, gets an id.

        Args:
            run_folder: existing folder of the run.

        Returns:
            The run as an owner.

        Raises:
            DataError: the folder cannot be written.
        """
        run_id = _read_id(run_folder)
        if run_id is None:
            run_id = secrets.token_hex(8)
            try:
                write_atomically(run_folder / RUN_ID_NAME, f"{run_id}\n", is_synced=True)
            except OSError as error:
                raise DataError(f"{run_folder / RUN_ID_NAME} cannot be written: {error.strerror}.") from error
        return cls(run_id, str(run_folder.absolute()))


def read_owner(directory: Path) -> FolderOwner | None:
    """The run that owns a folder of weights; None if none does, or if the file is damaged."""
    try:
        values = read_json(directory / OWNER_NAME)
        owner = FolderOwner(values["run_id"], values["run"])
    except (OSError, JsonError, KeyError, TypeError):
        return None
    return owner if isinstance(owner.run_id, str) and isinstance(owner.run, str) else None


def write_owner(directory: Path, owner: FolderOwner) -> None:
    """Make a folder of weights a run's own; raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / OWNER_NAME, json.dumps(asdict(owner)) + "\n", is_synced=True)


def check_weights_folder(config: RunConfig, *, is_resumed: bool) -> None:
    """Check that a run may write to its weight_sync.directory. Changes nothing.

    Args:
        config: resolved configuration.
        is_resumed: whether the run in run.directory continues; a new run owns no weights yet.

    Raises:
        DataError: another run uses the folder, or has left weights there.
        CheckpointError: the checkpoints of an earlier start of this run cannot be listed.
    """
    directory, run_folder = _shared_folder(config), config.run.directory
    if directory is None or (not is_resumed and directory.absolute().is_relative_to(run_folder.absolute())):
        return  # what lies in the folder of an earlier run is moved aside with it
    holder = find_holder(directory)
    if holder is not None and holder.is_held:
        raise DataError(f"{_SETTING} {directory} is in use by {holder.description}: give each run a folder of its own.")
    owner, versions = read_owner(directory), _versions(directory)
    if not versions:
        return
    if owner is None and not is_resumed:
        raise DataError(
            f"{_SETTING} {directory} holds {versions[0]}, which this run did not write: choose another folder."
        )
    if owner is not None and not (_is_own(owner, run_folder) if is_resumed else _is_failed_start(owner, run_folder)):
        raise DataError(
            f"{_SETTING} {directory} holds the weights of the run in {owner.run}: give each run a folder of its own, "
            "or remove these weights."
        )


def own_weights_folder(config: RunConfig, stack: ExitStack) -> None:
    """Lock the weight_sync.directory of a run that has passed `check_weights_folder`, and note its owner.

    Args:
        config: resolved configuration; its run folder exists.
        stack: owner of the lock from now on.

    Raises:
        DataError: another process holds the folder, or it cannot be written.
    """
    directory = _shared_folder(config)
    if directory is None:
        return  # the lock of the run folder covers the default folder
    stack.enter_context(RunLock(directory, setting=_SETTING))
    try:
        write_owner(directory, FolderOwner.of_run(config.run.directory))
    except OSError as error:
        raise DataError(f"{_SETTING} {directory} cannot be written: {error.strerror}.") from error


def _shared_folder(config: RunConfig) -> Path | None:
    """The folder that several runs could name; None where weights go elsewhere."""
    return config.weight_sync.directory if config.weight_sync.traits.keeps_copy else None


def _is_own(owner: FolderOwner, run_folder: Path) -> bool:
    if owner.run_id != _read_id(run_folder):
        return False
    # The id is the same: is this the run itself, perhaps renamed, or a copy beside it?
    before = Path(owner.run)
    return _read_id(before) != owner.run_id or before.samefile(run_folder)


def _is_failed_start(owner: FolderOwner, run_folder: Path) -> bool:
    """Whether the owner is an earlier start of this run that left nothing to keep, as when a job is started again."""
    if owner.run_id != _read_id(run_folder) or read_finished(run_folder) is not None:
        return False
    return not CheckpointStore(run_folder).find().candidates


def _read_id(run_folder: Path) -> str | None:
    try:
        return (run_folder / RUN_ID_NAME).read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def _versions(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir() if _VERSION_FOLDER.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{_SETTING} {directory} cannot be read: {error.strerror}.") from error

"""The checkpoints of a run. Each appears under its name at once and whole, and disappears in the same way.

RUN/checkpoints/step_00000040/  a checkpoint; its MANIFEST.json is written last
RUN/checkpoints/tmp_step_*      being written, or left behind by a process that was killed
RUN/checkpoints/tmp_replaced_*  the older, whole checkpoint of a step whose new step_* is about to take its place
RUN/checkpoints/tmp_delete_*    being deleted
RUN/checkpoints/aside_*         damaged, or newer than the checkpoint from which a run continued; never touched again
RUN/latest                      the name of the last checkpoint that was published

The process may be killed between any two system calls: a half-written or half-deleted folder never has a good name.
`RunLock` ensures that one process at a time writes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from megacov.checkpoint.disk import disk_errors
from megacov.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest, read_manifest, record_file, write_manifest
from megacov.errors import CheckpointError
from megacov.files import sync_file, sync_folder, write_atomically

# At most 12 digits: no run makes more steps, and a folder with such a name must not win over every real one.
_STEP = re.compile(r"step_(\d{8}|[1-9]\d{8,11})")
_REPLACED = re.compile(r"tmp_replaced_(\d{8,12})")
_LEFTOVER = re.compile(r"tmp_(step|delete)_\d{8,12}(\.\d+)?")


@dataclass(frozen=True)
class Found:
    """Checkpoints of a run: folders, newest step first, not verified yet, and a sentence for each irregularity."""

    candidates: tuple[Path, ...]
    notes: tuple[str, ...]


class CheckpointStore:
    """The checkpoints of one run folder."""

    def __init__(self, run_folder: Path) -> None:
        """Nothing is touched yet."""
        self.folder = run_folder / "checkpoints"
        self.pointer = run_folder / "latest"

    def path(self, step: int) -> Path:
        """Folder of the published checkpoint of a step, whether it exists or not."""
        return self.folder / f"step_{step:08d}"

    def temporary(self, step: int) -> Path:
        """Folder of the checkpoint of a step while it is written, whether it exists or not."""
        return self.folder / f"tmp_{self.path(step).name}"

    def clean(self) -> tuple[str, ...]:
        """Remove leftovers of killed processes; a whole checkpoint among them gets its name back.

        Returns:
            Former names of the folders that were removed or restored.

        Raises:
            CheckpointError: the folder cannot be read or written.
        """
        with disk_errors(self.folder, "written"):
            names = self._leftovers()
            for name in names:
                replaced = _REPLACED.fullmatch(name)
                if replaced and not self.path(int(replaced[1])).exists():
                    os.rename(self.folder / name, self.path(int(replaced[1])))
                elif replaced:
                    self._delete(self.folder / name, int(replaced[1]))
                else:
                    # A file that a network file system still keeps for another process is removed by a later call.
                    shutil.rmtree(self.folder / name, ignore_errors=True)
        return names

    def begin(self, step: int) -> Path:
        """Make the folder into which all ranks write a checkpoint, after removing leftovers of killed processes.

        Args:
            step: number of steps that the run has done.

        Returns:
            The empty folder.

        Raises:
            CheckpointError: the folder cannot be made.
        """
        self.clean()
        folder = self.temporary(step)
        with disk_errors(folder, "written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        return folder

    def publish(self, step: int, records: Iterable[FileRecord]) -> Path:
        """Give a written checkpoint its name and point `latest` to it. An older checkpoint of that name is replaced.

        Args:
            step: step for which `begin` was called.
            records: records of the files that are on the disk already. All others are synced and read here.

        Returns:
            Folder of the checkpoint.

        Raises:
            CheckpointError: the disk refuses a write, or a recorded file is missing or has another size.
        """
        folder, final = self.temporary(step), self.path(step)
        with disk_errors(folder, "written"):
            write_manifest(folder, Manifest(step, _complete(folder, tuple(records))))
            for inside, _, _ in os.walk(folder, topdown=False):
                sync_folder(Path(inside))
            replaced = None
            if final.exists():
                replaced = self.folder / f"tmp_replaced_{step:08d}"
                os.rename(final, replaced)
            os.rename(folder, final)
            sync_folder(self.folder)
            self._point_to(final.name)
            if replaced is not None:
                self._delete(replaced, step)
        return final

    def abandon(self, step: int) -> None:
        """Remove, as far as possible, a checkpoint that was begun and will not be published."""
        shutil.rmtree(self.temporary(step), ignore_errors=True)

    def set_aside(self, folder: Path) -> Path:
        """Rename a checkpoint from which a run does not continue. Its files are kept for a later look.

        Args:
            folder: one of the candidates of `find`.

        Returns:
            The new name of the folder.

        Raises:
            CheckpointError: the folder cannot be renamed.
        """
        aside = _free_name(self.folder / f"aside_{folder.name}")
        with disk_errors(folder, "renamed"):
            os.rename(folder, aside)
            sync_folder(self.folder)
        return aside

    def prune(self, keep_last: int, keep_every: int) -> tuple[int, ...]:
        """Delete old checkpoints. The one that `latest` names is left alone, and every folder that is none.

        A folder without a manifest of its own step is no checkpoint: it is not deleted, and not counted as kept.

        Args:
            keep_last: number of the newest checkpoints to keep.
            keep_every: number that divides the steps of further checkpoints to keep; 0 to keep no others.

        Returns:
            The deleted steps.

        Raises:
            CheckpointError: the folder cannot be read or written.
        """
        with disk_errors(self.folder, "removed"):
            steps = [step for step in self._steps() if _is_checkpoint(self.path(step))]
            kept = set(steps[-keep_last:] if keep_last > 0 else ())
            kept |= {step for step in steps if keep_every > 0 and step % keep_every == 0}
            kept |= {step for step in steps if self.path(step).name == self._read_pointer()}
            doomed = tuple(step for step in steps if step not in kept)
            for step in doomed:
                self._delete(self.path(step), step)
        return doomed

    def find(self) -> Found:
        """Look for checkpoints. Changes nothing.

        Returns:
            All checkpoints, newest first, and a sentence for each irregularity.

        Raises:
            CheckpointError: a folder or `latest` cannot be read.
        """
        with disk_errors(self.folder, "read"):
            by_step = {step: self.path(step) for step in self._steps()}
            notes = []
            for name in self._leftovers():
                notes.append(f"{name} was left behind by a process that was killed.")
                replaced = _REPLACED.fullmatch(name)
                if replaced:
                    by_step.setdefault(int(replaced[1]), self.folder / name)
            candidates = tuple(path for _, path in sorted(by_step.items(), reverse=True))
            bare = (path.name for path in candidates if not (path / MANIFEST_NAME).is_file())
            notes += [f"{name} has no {MANIFEST_NAME}." for name in bare]
            notes += [
                f"{name} is ignored: it is not the name of a checkpoint."
                for name in _names(self.folder, "step_")
                if name.removeprefix("step_").isdecimal() and not _STEP.fullmatch(name)
            ]
            notes += self._notes_on_pointer(candidates)
        return Found(candidates, tuple(notes))

    def _leftovers(self) -> tuple[str, ...]:
        """Sorted names of the folders that a killed process may have left behind; others begin with tmp_ by chance."""
        names = _names(self.folder, "tmp_")
        return tuple(name for name in names if _LEFTOVER.fullmatch(name) or _REPLACED.fullmatch(name))

    def _steps(self) -> list[int]:
        """Steps that have a folder, ascending."""
        return sorted(int(match[1]) for name in _names(self.folder, "step_") if (match := _STEP.fullmatch(name)))

    def _notes_on_pointer(self, candidates: tuple[Path, ...]) -> list[str]:
        name = self._read_pointer()
        if name is None:
            return [f"{self.pointer.name} is missing."] if candidates else []
        if not name:
            return [f"{self.pointer.name} is empty."]
        if not _STEP.fullmatch(name) or not (self.folder / name).is_dir():
            return [f"{self.pointer.name} names {name[:80]!r}, which is not there."]
        if name != candidates[0].name:
            return [
                f"{self.pointer.name} is stale: it names {name}, and the newest checkpoint is {candidates[0].name}."
            ]
        return []

    def _read_pointer(self) -> str | None:
        try:
            return self.pointer.read_bytes().decode("utf-8", errors="replace").strip("\0 \n")
        except FileNotFoundError:
            return None

    def _point_to(self, name: str) -> None:
        with disk_errors(self.pointer, "written"):
            write_atomically(self.pointer, f"{name}\n", is_synced=True)

    def _delete(self, folder: Path, step: int) -> None:
        doomed = _free_name(self.folder / f"tmp_delete_{step:08d}")
        os.rename(folder, doomed)
        # Files that cannot be deleted yet are left for the next `clean`, now that the good name is gone.
        shutil.rmtree(doomed, ignore_errors=True)


def read_own_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint, which must be that of the step in the folder's name.

    Args:
        folder: one of the candidates of `CheckpointStore.find`.

    Returns:
        The manifest.

    Raises:
        CheckpointError: the manifest cannot be read, or belongs to another step.
    """
    manifest = read_manifest(folder)
    match = _STEP.fullmatch(folder.name) or _REPLACED.fullmatch(folder.name)
    if match is None or int(match[1]) != manifest.step:
        raise CheckpointError(
            f"its {MANIFEST_NAME} is of step {manifest.step}: the folder was renamed or copied to another step."
        )
    return manifest


def _is_checkpoint(folder: Path) -> bool:
    try:
        read_own_manifest(folder)
    except CheckpointError:
        return False
    return True


def _names(folder: Path, prefix: str) -> tuple[str, ...]:
    """Sorted names of the folders in a folder; empty if the folder does not exist."""
    try:
        return tuple(sorted(path.name for path in folder.iterdir() if path.name.startswith(prefix) and path.is_dir()))
    except FileNotFoundError:
        return ()


def _free_name(path: Path) -> Path:
    return next(free for i in count() if not (free := path.with_name(f"{path.name}{f'.{i}' * (i > 0)}")).exists())


def _complete(folder: Path, records: tuple[FileRecord, ...]) -> tuple[FileRecord, ...]:
    """Records of all files, sorted by name. Files without a record are synced and read."""
    for record in records:
        path = folder / record.name
        num_bytes = path.stat().st_size if path.is_file() else None
        if num_bytes != record.num_bytes:
            found = "is missing" if num_bytes is None else f"has {num_bytes} bytes instead of {record.num_bytes}"
            raise CheckpointError(f"{path} {found}: the checkpoint was not written whole.")
    recorded = {record.name for record in records} | {MANIFEST_NAME}
    fresh = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in recorded:
            sync_file(path)
            fresh.append(record_file(folder, name))
    return tuple(sorted((*records, *fresh), key=lambda record: record.name))

"""The list of a checkpoint's files with size and sha256, which shows whether every byte is still as it was written.

Neither safetensors nor torch's checkpoints have a checksum, so a flipped bit would silently load as a wrong weight.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from megacov.checkpoint.disk import disk_errors
from megacov.errors import CheckpointError
from megacov.files import write_atomically
from megacov.json_text import parse_json

MANIFEST_NAME = "MANIFEST.json"

_FORMAT = 1
_BLOCK_BYTES = 4 << 20
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """One file as it was written; `name` is relative to the checkpoint, with / between folders."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Every file of the checkpoint of a step, except the manifest itself."""

    step: int
    files: tuple[FileRecord, ...]


def record_file(folder: Path, name: str) -> FileRecord:
    """Compute the record of a file. Suits a background thread, since reading and hashing release the interpreter.

    Args:
        folder: folder of the checkpoint.
        name: name of the file, relative to the folder.

    Returns:
        The record.

    Raises:
        CheckpointError: the file cannot be read.
    """
    with disk_errors(folder / name, "read"):
        return _read_record(folder, name)


def _read_record(folder: Path, name: str) -> FileRecord:
    digest, num_bytes = hashlib.sha256(), 0
    with (folder / name).open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            num_bytes += len(block)
    return FileRecord(name, num_bytes, digest.hexdigest())


def check_file(folder: Path, record: FileRecord) -> str | None:
    """Compare all bytes of a file with its record.

    Args:
        folder: folder of the checkpoint.
        record: record of the file.

    Returns:
        None if the file is as it was written, otherwise a phrase that begins with its name and describes the problem.
    """
    path = folder / record.name
    try:
        # The size comes first: it finds a truncated file without reading it, and tells it from a changed one.
        num_bytes = path.stat().st_size
        if num_bytes != record.num_bytes:
            cut = "truncated" if num_bytes < record.num_bytes else "bytes were added to it"
            return f"{record.name} has {num_bytes} bytes instead of {record.num_bytes} ({cut})"
        found = _read_record(folder, record.name)
    except FileNotFoundError:
        return f"{record.name} is missing"
    except OSError as error:
        return f"{record.name} cannot be read: {error.strerror or error}"
    if found != record:
        return f"{record.name} has another sha256 (its bytes changed after it was written)"
    return None


def check_files(folder: Path, records: Iterable[FileRecord]) -> tuple[str, ...]:
    """Compare files of a checkpoint with their records. Returns one phrase for each file that has a problem."""
    return tuple(problem for record in records if (problem := check_file(folder, record)) is not None)


def write_manifest(folder: Path, manifest: Manifest, *, is_synced: bool = True) -> None:
    """Write MANIFEST.json.

    Args:
        folder: folder of the checkpoint.
        manifest: list of its files.
        is_synced: whether to wait until its bytes are on the disk.

    Raises:
        CheckpointError: the disk refuses the file, or the list has a name that could not be read back.
    """
    problem = _problem(manifest)
    if problem:
        raise CheckpointError(f"{folder / MANIFEST_NAME} cannot be written: {problem}.")
    with disk_errors(folder / MANIFEST_NAME, "written"):
        write_atomically(folder / MANIFEST_NAME, _render(manifest), is_synced=is_synced)


def read_manifest(folder: Path) -> Manifest:
    """Read MANIFEST.json, which is accepted only if every byte is as it was written.

    Args:
        folder: folder of the checkpoint.

    Returns:
        The list of its files. All names stay inside the folder.

    Raises:
        CheckpointError: the manifest is missing, empty, truncated, malformed or changed.
    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_bytes().decode("utf-8")
        if not text.strip("\0 \n"):
            raise CheckpointError(f"{path} is empty: it was never written out.")
        manifest = _parse(parse_json(text))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: the checkpoint was never finished.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated or malformed: {str(error)[:120]}.") from error
    if problem := _problem(manifest):
        raise CheckpointError(f"{path} is malformed: {problem}.")
    # The text holds a checksum of the list and is otherwise determined by the list, so this finds every changed byte.
    if _render(manifest) != text:
        raise CheckpointError(f"{path} does not have the checksum it names: its bytes changed after it was written.")
    return manifest


def _render(manifest: Manifest) -> str:
    body = {"format": _FORMAT, "step": manifest.step, "files": [asdict(record) for record in manifest.files]}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps({**body, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}, indent=1) + "\n"


def _parse(value: Any) -> Manifest:
    """The manifest in a JSON value; ValueError if the value has another shape."""
    match value:
        case {"format": int(number)} if number != _FORMAT:
            raise ValueError(f"it has format {str(number)[:20]}, and this version of megacov reads format {_FORMAT}")
        case {"format": int(), "step": int(step), "files": list(files)}:
            return Manifest(step, tuple(_parse_record(entry) for entry in files))
    raise ValueError("it does not list the files of a step")


def _parse_record(value: Any) -> FileRecord:
    match value:
        case {"name": str(name), "num_bytes": int(num_bytes), "sha256": str(sha256)}:
            return FileRecord(name, num_bytes, sha256)
    raise ValueError("an entry of its list is not name, num_bytes and sha256")


def _problem(manifest: Manifest) -> str:
    """Why a list of files is unusable; empty if it can be used."""
    if not _is_count(manifest.step):
        return f"step is {manifest.step!r}"
    for record in manifest.files:
        if not _stays_inside(record.name):
            return f"the file name {record.name!r} does not stay inside the checkpoint"
        if not _is_count(record.num_bytes):
            return f"the size of {record.name} is {record.num_bytes!r}"
        if not isinstance(record.sha256, str) or not _SHA256.fullmatch(record.sha256):
            return f"the sha256 of {record.name} is {record.sha256!r}"
    names = {record.name for record in manifest.files}
    return "" if len(names) == len(manifest.files) else "it names a file twice"


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _stays_inside(name: object) -> bool:
    """Whether a name, which may come from a damaged or hostile file, stays in the folder or below it."""
    # Characters that cannot be printed, such as surrogates and NUL, may not be encodable as a path either.
    if not isinstance(name, str) or not name.isprintable() or name in ("", ".", MANIFEST_NAME):
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name

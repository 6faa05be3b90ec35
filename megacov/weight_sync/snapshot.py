"""Write weights as a Hugging Face model folder that a server can load."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import save_file

from megacov.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest, record_file, write_manifest
from megacov.errors import CheckpointError, WeightSyncError

if TYPE_CHECKING:
    from torch import Tensor

# Configuration, tokenizer and chat template; everything else in a model folder is weights or code.
_COPIED_SUFFIXES = frozenset({".json", ".jinja", ".model", ".txt"})
_INDEX_FILE = "model.safetensors.index.json"
_NUM_HASHERS = 4


@dataclass(frozen=True)
class Snapshot:
    """A written model folder: bytes of all tensors, and a record of every file if it has a manifest."""

    num_bytes: int
    records: tuple[FileRecord, ...]


def write_snapshot(
    folder: Path,
    named_tensors: Iterable[tuple[str, Tensor]],
    *,
    source_model: Path,
    max_shard_bytes: int,
    version: int | None = None,
) -> Snapshot:
    """Write a model folder atomically: it appears whole or not at all. It replaces an older one of the same name.

    Args:
        folder: new folder; its parent is created.
        named_tensors: every weight by its Hugging Face name, on any device.
        source_model: folder to copy configuration and tokenizer from.
        max_shard_bytes: largest file of weights, unless one tensor alone is larger. [bytes]
        version: version of the weights, for a manifest with the sha256 of every file; None writes no manifest. Files
            are hashed in threads while later ones are written.

    Returns:
        The size of all tensors, and the records in the manifest.

    Raises:
        WeightSyncError: the disk does not take it; then the name holds the older folder, or nothing.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"tmp-{folder.name}-", dir=folder.parent) as temporary:
            fresh = Path(temporary, "fresh")
            fresh.mkdir()
            _copy_configuration(source_model, fresh)
            with ThreadPoolExecutor(_NUM_HASHERS) as hashers:

                def hash_file(name: str) -> Future[FileRecord]:
                    return hashers.submit(record_file, fresh, name)

                num_bytes, records = _write_weights(
                    fresh,
                    named_tensors,
                    max_shard_bytes=max_shard_bytes,
                    hash_file=None if version is None else hash_file,
                )
            if version is not None:
                weights = {record.name for record in records}
                others = sorted(path.name for path in fresh.iterdir() if path.name not in weights)
                records += [record_file(fresh, name) for name in others]
                write_manifest(fresh, Manifest(version, tuple(records)))
            if folder.exists():
                folder.rename(Path(temporary, "replaced"))
            fresh.rename(folder)
    except (OSError, SafetensorError, CheckpointError) as error:
        raise WeightSyncError(
            f"The weights cannot be written to {folder} ({error}); free space, or choose another folder."
        ) from error
    return Snapshot(num_bytes, tuple(records))


def _copy_configuration(source_model: Path, folder: Path) -> None:
    for file in sorted(source_model.iterdir()):
        if file.is_file() and file.suffix in _COPIED_SUFFIXES and file.name not in (_INDEX_FILE, MANIFEST_NAME):
            shutil.copyfile(file, folder / file.name)


def _write_weights(
    folder: Path,
    named_tensors: Iterable[tuple[str, Tensor]],
    *,
    max_shard_bytes: int,
    hash_file: Callable[[str], Future[FileRecord]] | None,
) -> tuple[int, list[FileRecord]]:
    shards: list[list[str]] = []
    hashes: list[Future[FileRecord]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = total_bytes = 0

    def close_shard() -> None:
        shards.append(list(pending))
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        if hash_file is not None:
            hashes.append(hash_file(f"shard-{len(shards)}"))
        pending.clear()

    for name, tensor in named_tensors:
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            close_shard()
            pending_bytes = 0
        pending[name] = _owned(tensor.cpu(), pending.values())
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    close_shard()
    records = [each.result() for each in hashes]  # before the files get other names
    names = _name_shards(folder, shards, total_bytes)
    return total_bytes, [replace(record, name=name) for record, name in zip(records, names, strict=False)]


def _owned(tensor: Tensor, others: Collection[Tensor]) -> Tensor:
    """Give the tensor its own storage, as safetensors requires: views into larger or shared storage are copied."""
    tensor = tensor.detach().contiguous()
    storage = tensor.untyped_storage()
    is_shared = any(other.untyped_storage().data_ptr() == storage.data_ptr() for other in others)
    return tensor.clone() if is_shared or storage.nbytes() != tensor.nbytes else tensor


def _name_shards(folder: Path, shards: list[list[str]], total_bytes: int) -> list[str]:
    """Give the files their Hugging Face names, which contain the number of files; returns the names."""
    if len(shards) == 1:
        Path(folder, "shard-1").rename(folder / "model.safetensors")
        return ["model.safetensors"]
    file_names = []
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        Path(folder, f"shard-{number}").rename(folder / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
        file_names.append(file_name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    Path(folder, _INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return file_names

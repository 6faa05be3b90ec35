"""Write weights as a Hugging Face model folder that a server can load."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import save_file

from megacov.checkpoint.manifest import FileRecord, Manifest, record_file, write_manifest
from megacov.errors import CheckpointError, WeightSyncError
from megacov.weight_sync.model_files import copy_model_files, write_dtype

if TYPE_CHECKING:
    from torch import Tensor

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
    check: Callable[[Path], None] | None = None,
) -> Snapshot:
    """Write a model folder atomically: it appears whole or not at all. It replaces an older one of the same name.

    Its config.json names the dtype of the weights, or of most bytes of them.

    Args:
        folder: new folder; its parent is created.
        named_tensors: every weight by its Hugging Face name, on any device.
        source_model: folder to copy configuration and tokenizer from.
        max_shard_bytes: largest file of weights, unless one tensor alone is larger. [bytes]
        version: version of the weights, for a manifest with the sha256 of every file; None writes no manifest. Files
            are hashed in threads while later ones are written.
        check: looks at the folder before it appears, under a temporary name, and may raise.

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
            copy_model_files(source_model, fresh)
            with ThreadPoolExecutor(_NUM_HASHERS) as hashers:

                def hash_file(name: str) -> Future[FileRecord]:
                    return hashers.submit(record_file, fresh, name)

                bytes_by_dtype, records = _write_weights(
                    fresh,
                    named_tensors,
                    max_shard_bytes=max_shard_bytes,
                    hash_file=None if version is None else hash_file,
                )
            write_dtype(fresh, max(bytes_by_dtype, key=bytes_by_dtype.__getitem__))
            if version is not None:
                records = _write_manifest(fresh, version, records)
            if check is not None:
                check(fresh)
            if folder.exists():
                folder.rename(Path(temporary, "replaced"))
            fresh.rename(folder)
    except (OSError, SafetensorError, CheckpointError) as error:
        raise WeightSyncError(
            f"The weights cannot be written to {folder} ({error}); free space, or choose another folder."
        ) from error
    return Snapshot(bytes_by_dtype.total(), tuple(records))


def _write_manifest(folder: Path, version: int, records: list[FileRecord]) -> list[FileRecord]:
    """Write the manifest of a model folder, of which the files of weights have records, and return all records."""
    weights = {record.name for record in records}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    records = [*records, *(record_file(folder, name) for name in names if name not in weights)]
    # A crash of the machine ends the servers too, and the next run writes its weights again.
    write_manifest(folder, Manifest(version, tuple(records)), is_synced=False)
    return records


def _write_weights(
    folder: Path,
    named_tensors: Iterable[tuple[str, Tensor]],
    *,
    max_shard_bytes: int,
    hash_file: Callable[[str], Future[FileRecord]] | None,
) -> tuple[Counter[str], list[FileRecord]]:
    """Write the files of weights, and return the bytes of each dtype and the records of the files."""
    shards: list[list[str]] = []
    hashes: list[Future[FileRecord]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = 0
    bytes_by_dtype: Counter[str] = Counter()

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
        bytes_by_dtype[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    close_shard()
    records = [each.result() for each in hashes]  # before the files get other names
    names = _name_shards(folder, shards, bytes_by_dtype.total())
    return bytes_by_dtype, [replace(record, name=name) for record, name in zip(records, names, strict=False)]


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

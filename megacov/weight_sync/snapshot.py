"""Write weights as a Hugging Face model folder that a server can load."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import save_file

from megacov.errors import WeightSyncError
from megacov.weight_sync.model_files import copy_model_files, write_dtype

if TYPE_CHECKING:
    from torch import Tensor

_INDEX_FILE = "model.safetensors.index.json"


def write_snapshot(
    folder: Path,
    named_tensors: Iterable[tuple[str, Tensor]],
    *,
    source_model: Path,
    max_shard_bytes: int,
    check: Callable[[Path], None] | None = None,
) -> int:
    """Write a model folder atomically: it appears whole or not at all. It replaces an older one of the same name.

    Its config.json names the dtype of the weights, or of most bytes of them.

    Args:
        folder: new folder; its parent is created.
        named_tensors: every weight by its Hugging Face name, on any device.
        source_model: folder to copy configuration and tokenizer from.
        max_shard_bytes: largest file of weights, unless one tensor alone is larger. [bytes]
        check: looks at the folder before it appears, under a temporary name, and may raise.

    Returns:
        Bytes of all tensors.

    Raises:
        WeightSyncError: the disk does not take it; then the name holds the older folder, or nothing.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"tmp-{folder.name}-", dir=folder.parent) as temporary:
            fresh = Path(temporary, "fresh")
            fresh.mkdir()
            copy_model_files(source_model, fresh)
            bytes_by_dtype = _write_weights(fresh, named_tensors, max_shard_bytes=max_shard_bytes)
            write_dtype(fresh, max(bytes_by_dtype, key=bytes_by_dtype.__getitem__))
            if check is not None:
                check(fresh)
            if folder.exists():
                folder.rename(Path(temporary, "replaced"))
            fresh.rename(folder)
    except (OSError, SafetensorError) as error:
        raise WeightSyncError(
            f"The weights cannot be written to {folder} ({error}); free space, or choose another folder."
        ) from error
    return bytes_by_dtype.total()


def _write_weights(folder: Path, named_tensors: Iterable[tuple[str, Tensor]], *, max_shard_bytes: int) -> Counter[str]:
    """Write the files of weights, and return the bytes of each dtype."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = 0
    bytes_by_dtype: Counter[str] = Counter()

    def close_shard() -> None:
        shards.append(list(pending))
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        pending.clear()

    for name, tensor in named_tensors:
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            close_shard()
            pending_bytes = 0
        pending[name] = _owned(tensor.cpu(), pending.values())
        pending_bytes += tensor.nbytes
        bytes_by_dtype[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    close_shard()
    _name_shards(folder, shards, bytes_by_dtype.total())
    return bytes_by_dtype


def _owned(tensor: Tensor, others: Collection[Tensor]) -> Tensor:
    """Give the tensor its own storage, as safetensors requires: views into larger or shared storage are copied."""
    tensor = tensor.detach().contiguous()
    storage = tensor.untyped_storage()
    is_shared = any(other.untyped_storage().data_ptr() == storage.data_ptr() for other in others)
    return tensor.clone() if is_shared or storage.nbytes() != tensor.nbytes else tensor


def _name_shards(folder: Path, shards: list[list[str]], total_bytes: int) -> None:
    """Give the files their Hugging Face names, which contain the number of files."""
    if len(shards) == 1:
        Path(folder, "shard-1").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        Path(folder, f"shard-{number}").rename(folder / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    Path(folder, _INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")

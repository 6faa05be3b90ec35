"""sha256 of a model folder's tensors, of which each process reads a share. Independent of how files divide them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from megacov.errors import DataError
from megacov.json_text import parse_json
from megacov.megatron.hf_folder import HfFolder

_BLOCK_BYTES = 4 << 20
_MAX_HEADER_BYTES = 100_000_000  # as in safetensors itself


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file: dtype and shape as the file states them, and its bytes from `start` to `stop`."""

    name: str
    kind: str
    path: Path
    start: int
    stop: int


def hash_tensors(folder: Path, *, share: int, num_shares: int) -> dict[str, str]:
    """Hash a share of the tensors of a model folder, about equal in bytes and mostly read in order.

    Args:
        folder: folder with one or more .safetensors files.
        share: which share to read, from 0.
        num_shares: number of shares, which together are all tensors, each once.

    Returns:
        Name of a tensor -> sha256 of its dtype, shape and bytes.

    Raises:
        DataError: a file cannot be read.
    """
    tensors = [tensor for path in HfFolder(folder).files for tensor in _stored_in(path)]
    total, before, digests = sum(tensor.stop - tensor.start for tensor in tensors), 0, {}
    for tensor in tensors:
        if before * num_shares // max(total, 1) == share:
            digests[tensor.name] = _hash(tensor)
        before += tensor.stop - tensor.start
        # Tensors without bytes at the very end would otherwise belong to nobody.
        before = min(before, max(total, 1) - 1)
    return digests


def combine(digests: Mapping[str, str]) -> str:
    """One sha256 for all tensors.

    Args:
        digests: digest by name of every tensor of a model.

    Returns:
        Digest in hex, equal for equal names and tensors.
    """
    lines = "".join(f"{digest} {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _stored_in(path: Path) -> Iterator[_Stored]:
    """The tensors of a safetensors file in the order of their bytes: 8 bytes of length, JSON, then the tensors."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(min(length, _MAX_HEADER_BYTES + 1)), max_bytes=_MAX_HEADER_BYTES)
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        for name, entry in sorted(entries, key=lambda pair: pair[1]["data_offsets"]):
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            yield _Stored(name, f"{entry['dtype']} {entry['shape']}\n", path, start, stop)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}.") from error


def _hash(tensor: _Stored) -> str:
    digest, left = hashlib.sha256(tensor.kind.encode()), tensor.stop - tensor.start
    try:
        with tensor.path.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            while left:
                block = file.read(min(left, _BLOCK_BYTES))
                if not block:
                    raise DataError(f"{tensor.path} ends within {tensor.name}: fetch the file again.")
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise DataError(f"{tensor.path} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()

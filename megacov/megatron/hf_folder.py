"""Reads the safetensors files of a Hugging Face model folder, one tensor or one part of a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megacov.errors import DataError
from megacov.json_text import JsonError, read_json

_MAX_INDEX_BYTES = 64 * 2**20  # the largest models, of some 100,000 tensors, have indexes of 10 MB
INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"


class HfFolder:
    """Maps each tensor to its file, and opens a file only to read from it.

    With an index, the files it names are the model's, and others in the folder (such as Mistral's
    `consolidated.safetensors`) are ignored. Without one, the model is `model.safetensors` if that exists, or else all
    .safetensors files.
    """

    def __init__(self, folder: Path) -> None:
        """List the tensors of all files.

        Args:
            folder: folder with one or more .safetensors files.

        Raises:
            DataError: there is no such file, a file cannot be read, or the index disagrees with its files.
        """
        self._folder = folder
        self._files: dict[str, Path] = {}
        index = _read_index(folder / INDEX_FILE)
        for file in _files_of(folder, index):
            for name in _names_in(file):
                listed = index.get(name, "no file") if index is not None else self._files.get(name, file).name
                if listed != file.name and index is not None:
                    raise DataError(
                        f"{file} holds {name}, but {INDEX_FILE} lists it in {listed}: fetch or save the model again."
                    )
                if listed != file.name:
                    raise DataError(f"{file} holds {name}, and so does {listed}: keep one of them.")
                self._files[name] = file
        for name, listed in (index or {}).items():
            if name not in self._files:
                raise DataError(
                    f"{folder / INDEX_FILE} lists {name} in {listed}, which does not hold it: fetch or save the model "
                    "again."
                )
        if not self._files:
            raise DataError(f"{folder} has no tensor in .safetensors files: save the model as safetensors first.")

    def check(self, expected: Mapping[str, tuple[int, ...]], *, optional: AbstractSet[str]) -> None:
        """Check that the folder holds exactly the expected tensors, in their shapes. Reads headers only.

        Args:
            expected: shape by name of the required tensors.
            optional: names of further tensors that are allowed.

        Raises:
            DataError: names a missing, extra or mis-shaped tensor, or a file that cannot be read.
        """
        missing, extra = sorted(expected.keys() - self._files), sorted(self._files.keys() - expected.keys() - optional)
        if missing or extra:
            what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which this model does not have"
            raise DataError(f"{self._folder} {what}: its weights do not fit its config.json.")
        by_file: dict[Path, list[str]] = {}
        for name in expected:
            by_file.setdefault(self._files[name], []).append(name)
        for names in by_file.values():
            with self._opened(names[0]) as tensors:
                shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
            for name, shape in shapes.items():
                if shape != expected[name]:
                    raise DataError(
                        f"{self._files[name]}: {name} has shape {shape} and config.json says {expected[name]}: "
                        "use the configuration that belongs to these weights."
                    )

    def read(self, name: str, *, dim: int | None = None, start: int = 0, stop: int = 0) -> Tensor:
        """Read one tensor or a part of it, and nothing else.

        Args:
            name: Hugging Face name.
            dim: 0 or 1, the dimension along which to take a part; None for the whole tensor.
            start: first index of the part.
            stop: end of the part, exclusive.

        Returns:
            The tensor, on the CPU.

        Raises:
            DataError: the file cannot be read.
        """
        with self._opened(name) as tensors:
            if dim is None:
                tensor: Tensor = tensors.get_tensor(name)
            else:
                part = tensors.get_slice(name)
                tensor = part[start:stop] if dim == 0 else part[:, start:stop]
        return tensor

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """Open the file that holds a tensor; Any, because safetensors has no types."""
        try:
            with safe_open(self._files[name], framework="pt") as tensors:
                yield tensors
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self._files[name]} cannot be read: {error}.") from error


def _files_of(folder: Path, index: Mapping[str, str] | None) -> list[Path]:
    if index is None:
        single = folder / SINGLE_FILE
        return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    for name, file_name in index.items():
        if not (folder / file_name).is_file():
            raise DataError(
                f"{folder / INDEX_FILE} lists {name} in {file_name}, which does not exist: fetch the missing files of "
                "this model."
            )
    return [folder / file_name for file_name in sorted(set(index.values()))]


def _names_in(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} cannot be read as safetensors: {error}.") from error


def _read_index(file: Path) -> dict[str, str] | None:
    """File name by tensor name; None without an index."""
    if not file.exists():
        return None
    try:
        content = read_json(file, max_bytes=_MAX_INDEX_BYTES)
    except (OSError, JsonError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}.") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and name.isprintable() for name in weight_map.values()
    ):
        raise DataError(f"{file} has no weight_map from tensors to files: fetch or save the model again.")
    outside = next((name for name in weight_map.values() if Path(name).name != name or not name), None)
    if outside is not None:
        raise DataError(
            f"{file} names {outside[:60]}, which is not a file of its folder: fetch or save the model again."
        )
    return weight_map

"""Reads the safetensors files of a Hugging Face model folder, one tensor or one part of a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megacov.errors import DataError
from megacov.json_text import JsonError, read_json

_MAX_INDEX_BYTES = 64 * 2**20  # the largest models, of some 100,000 tensors, have indexes of 10 MB
INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
_ADAPTER_FILE = "adapter_config.json"
_FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Shape and dtype of a tensor in a file; the dtype as safetensors names it, such as "BF16"."""

    shape: tuple[int, ...]
    dtype: str


class HfFolder:
    """Maps each tensor to its file, and opens a file only to read from it.

    With an index, the files it names are the model's, and others in the folder (such as Mistral's
    `consolidated.safetensors`) are ignored. Without one, the model is `model.safetensors` if that exists, or else all
    .safetensors files. Where both exist, transformers takes `model.safetensors` and SGLang the index's files, so that
    is refused unless they are the same.
    """

    def __init__(self, folder: Path) -> None:
        """List the tensors of all files.

        Args:
            folder: folder with one or more .safetensors files.

        Raises:
            DataError: there is no such file, a file cannot be read, the index disagrees with its files, or programs
                would read different files.
        """
        self._folder = folder
        if (folder / _ADAPTER_FILE).is_file():
            raise DataError(
                f"{folder} holds an adapter ({_ADAPTER_FILE}), which would not be trained: merge it into the model."
            )
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
        _refuse_doubles(folder, index, self._files)
        if not self._files:
            raise DataError(f"{folder} has no tensor in .safetensors files: save the model as safetensors first.")

    @property
    def files(self) -> list[Path]:
        """The files that hold the model's tensors, sorted."""
        return sorted(set(self._files.values()))

    def check(self, expected: Mapping[str, tuple[int, ...]], *, optional: AbstractSet[str]) -> None:
        """Check that the folder holds exactly the expected tensors, in their shapes. Reads headers only.

        Args:
            expected: shape by name of the required tensors.
            optional: names of further tensors that are allowed.

        Raises:
            DataError: names a missing, extra or mis-shaped tensor, one that is not of floats, or a file that cannot
                be read.
        """
        missing, extra = sorted(expected.keys() - self._files), sorted(self._files.keys() - expected.keys() - optional)
        if missing or extra:
            what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which this model does not have"
            raise DataError(f"{self._folder} {what}: its weights do not fit its config.json.")
        for name, header in self.headers(expected).items():
            if header.dtype not in _FLOAT_DTYPES:
                raise DataError(
                    f"{self._files[name]}: {name} has dtype {header.dtype}, and weights are read in one of "
                    f"{', '.join(_FLOAT_DTYPES)} only: take the model that is not quantized."
                )
            if header.shape != expected[name]:
                raise DataError(
                    f"{self._files[name]}: {name} has shape {header.shape} and config.json says {expected[name]}: "
                    "use the configuration that belongs to these weights."
                )

    def headers(self, names: Iterable[str] | None = None) -> dict[str, TensorHeader]:
        """Read shapes and dtypes, of all tensors or of some; raises DataError if a file cannot be read."""
        by_file: dict[Path, list[str]] = {}
        for name in self._files if names is None else names:
            by_file.setdefault(self._files[name], []).append(name)
        found = {}
        for own in by_file.values():
            with self._opened(own[0]) as tensors:
                for name in own:
                    header = tensors.get_slice(name)
                    found[name] = TensorHeader(tuple(header.get_shape()), str(header.get_dtype()))
        return found

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

    def __contains__(self, name: str) -> bool:
        """Whether the folder holds a tensor of this name."""
        return name in self._files

    def are_equal(self, first: str, second: str) -> bool:
        """Compare the shapes of two matrices, and their values whatever their dtypes, a few rows at a time."""
        with self._opened(first) as one, self._opened(second) as other:
            left, right = one.get_slice(first), other.get_slice(second)
            if left.get_shape() != right.get_shape():
                return False
            starts = range(0, left.get_shape()[0], _ROWS)
            return all(bool((left[i : i + _ROWS] == right[i : i + _ROWS]).all()) for i in starts)

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


def _refuse_doubles(folder: Path, index: Mapping[str, str] | None, files: Mapping[str, Path]) -> None:
    """Refuse `model.safetensors` beside other files of weights where transformers and SGLang read different ones."""
    single = folder / SINGLE_FILE
    if not single.is_file():
        return
    if index is not None:
        other = next((name for name in index.values() if name != SINGLE_FILE), None)
        if other is not None:
            raise DataError(
                f"{folder} holds {SINGLE_FILE}, which transformers would read, and {INDEX_FILE} with {other}, which "
                "SGLang would read: remove one of them."
            )
        return
    for file in sorted(folder.glob("*.safetensors")):
        double = None if file == single else next((name for name in _names_in(file) if name in files), None)
        if double is not None:
            raise DataError(f"{single} holds {double}, and so does {file.name}: keep one of them.")


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

"""The safetensors files of a Hugging Face model folder, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megacov.errors import DataError


class HfFolder:
    """Knows which file holds each tensor; opens it only to read that tensor."""

    def __init__(self, folder: Path) -> None:
        """List the tensors of all files.

        Args:
            folder: with one or more .safetensors files.

        Raises:
            DataError: no such file, or one that cannot be read.
        """
        self._folder = folder
        self._files: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt") as tensors:
                    self._files.update(dict.fromkeys(tensors.keys(), file))
            except (SafetensorError, OSError) as error:
                raise DataError(f"{file} cannot be read as safetensors: {error}.") from error
        if not self._files:
            raise DataError(f"{folder} has no tensor in .safetensors files: save the model as safetensors first.")

    def check(self, expected: Mapping[str, tuple[int, ...]], *, optional: AbstractSet[str]) -> None:
        """Whether exactly the expected tensors are there, in their shapes. Reads headers only.

        Args:
            expected: shape by name, of the tensors that must be there.
            optional: names that may be there.

        Raises:
            DataError: naming a missing, extra or mis-shaped tensor, or a file that cannot be read.
        """
        missing, extra = sorted(expected.keys() - self._files), sorted(self._files.keys() - expected.keys() - optional)
        if missing or extra:
            what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which this model does not have"
            raise DataError(f"{self._folder} {what}: its weights do not fit its config.json.")
        for name, shape in expected.items():
            with self._opened(name) as tensors:
                found = tuple(tensors.get_slice(name).get_shape())
            if found != shape:
                raise DataError(
                    f"{self._files[name]}: {name} has shape {found} and config.json says {shape}: "
                    "use the configuration that belongs to these weights."
                )

    def read(self, name: str) -> Tensor:
        """One tensor.

        Args:
            name: its Hugging Face name.

        Returns:
            The tensor, on the CPU.

        Raises:
            DataError: a file that cannot be read.
        """
        with self._opened(name) as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """The file that holds a tensor; Any, because safetensors has no types."""
        try:
            with safe_open(self._files[name], framework="pt") as tensors:
                yield tensors
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self._files[name]} cannot be read: {error}.") from error

"""The safetensors files of a Hugging Face model folder, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from pathlib import Path

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

    def check_names(self, expected: AbstractSet[str], *, optional: AbstractSet[str]) -> None:
        """Whether exactly the expected tensors are there.

        Args:
            expected: names that must be there.
            optional: names that may be there.

        Raises:
            DataError: naming a missing or an extra tensor.
        """
        missing, extra = sorted(expected - self._files.keys()), sorted(self._files.keys() - expected - optional)
        if missing or extra:
            what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which this model does not have"
            raise DataError(f"{self._folder} {what}: its weights do not fit its config.json.")

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor.

        Args:
            name: its Hugging Face name.
            shape: that it must have.

        Returns:
            The tensor, on the CPU.

        Raises:
            DataError: another shape, or a file that cannot be read.
        """
        try:
            with safe_open(self._files[name], framework="pt") as tensors:
                tensor: Tensor = tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self._files[name]} cannot be read: {error}.") from error
        if tuple(tensor.shape) != shape:
            raise DataError(
                f"{self._files[name]}: {name} has shape {tuple(tensor.shape)} and config.json says {shape}: "
                "use the configuration that belongs to these weights."
            )
        return tensor

"""Identity of a model: an evaluation that was stopped goes on only with the same one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from megacov.errors import DataError

# What a model and its tokenizer consist of; notes, pictures and scripts beside them change nothing.
_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")


def model_digest(folder: Path) -> str:
    """SHA-256 of the files of a model folder, by name and content, as hexadecimal digits.

    Args:
        folder: model folder in Hugging Face format.

    Returns:
        The digest.

    Raises:
        DataError: a file cannot be read.
    """
    whole = hashlib.sha256()
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix in _SUFFIXES and path.is_file():
                with path.open("rb") as file:
                    whole.update(f"{path.name}\n{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    except OSError as error:
        raise DataError(f"the model folder {folder} cannot be read ({error.strerror}): correct the path.") from error
    return whole.hexdigest()

"""Files of prompts: local files and folders, and any address that fsspec knows, such as those of Hugging Face."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megacov.errors import DataError, MegacovError

SUFFIXES = (".jsonl", ".json", ".parquet")
"""Endings of the files that are read from a folder."""

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_HUB = "hf:"
_BLOCK_BYTES = 4 << 20
_WILD = "*?["
_SPLITS = ("train", "test", "validation")


@dataclass(frozen=True)
class DataFile:
    """One file of prompts by its path or address. `is_local` is false for an address of fsspec."""

    name: str
    is_local: bool = True

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file, open for reading; raises DataError if it cannot be read, also while it is open."""
        with _one_sentence(self.name):
            if self.is_local:
                with open(self.name, "rb") as file:
                    yield file
            else:
                files, path = _file_system(self.name)
                with files.open(path, "rb") as file:
                    yield file

    @property
    def sha256(self) -> str:
        """Digest of the file's content, read anew each time; raises DataError if it cannot be read."""
        digest = hashlib.sha256()
        with self.open() as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()


def local_path(path: str | os.PathLike[str]) -> Path | None:
    """The path of a local file or folder; None for an address of another file system."""
    text = os.fspath(path)
    return None if "://" in text or text.startswith(_HUB) else Path(path)


def find_files(paths: Paths) -> list[DataFile]:
    """Find the files that paths and addresses name, in the order of the paths.

    Args:
        paths: one or several, each a file, a folder, or a pattern with `*`; or an address of fsspec, such as
            `s3://bucket/key`; or `hf:org/name[@revision][/file]`, short for `hf://datasets/org/name...`. A folder gives
            its files that end in .jsonl, .json or .parquet, in the order of their names, and a data set of Hugging Face
            also those in folders below it.

    Returns:
        One file or more.

    Raises:
        DataError: there is no such file or address, or a data set of Hugging Face has several splits and none is named.
    """
    each_path = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    return [file for path in each_path for file in _find(path)]


def digest_of(digests: Iterable[str]) -> str:
    """One digest for several files in order; that of a single file is its own."""
    every = list(digests)
    return every[0] if len(every) == 1 else hashlib.sha256("\n".join(every).encode()).hexdigest()


def _find(path: str | os.PathLike[str]) -> list[DataFile]:
    local = local_path(path)
    if local is None:
        return _find_remote(os.fspath(path))
    with _one_sentence(str(local)):
        if local.is_dir():
            found = sorted(each for each in local.iterdir() if each.suffix in SUFFIXES and each.is_file())
            if not found:
                raise DataError(
                    f"data.path is {local}, a folder without a file that ends in .jsonl, .json or .parquet: correct "
                    "data.path."
                )
            return [DataFile(str(each)) for each in found]
        if not local.exists() and is_pattern(str(local)):
            names = sorted(name for name in glob.glob(str(local), recursive=True) if os.path.isfile(name))
            if not names:
                raise DataError(f"No file matches {local}; correct data.path.")
            return [DataFile(name) for name in names]
        if not local.exists():
            raise FileNotFoundError
    return [DataFile(str(local))]


def _find_remote(address: str) -> list[DataFile]:
    is_hub = address.startswith((_HUB, f"{_HUB}//"))
    whole = address if "://" in address else f"hf://datasets/{address.removeprefix(_HUB)}"
    with _one_sentence(address):
        files, path = _file_system(whole)
        if is_pattern(path):
            names = sorted(files.glob(path))
        elif path.partition("?")[0].endswith(SUFFIXES) or not files.isdir(path):
            return [DataFile(whole, is_local=False)]
        else:
            every = files.find(path) if is_hub else files.ls(path, detail=False)
            names = sorted(name for name in every if name.endswith(SUFFIXES))
        if not names:
            raise DataError(f"{address} holds no file that ends in .jsonl, .json or .parquet: correct data.path.")
        if is_hub:
            _refuse_several_splits(address, path, names)
        return [DataFile(files.unstrip_protocol(name), is_local=False) for name in names]


def is_pattern(path: str) -> bool:
    """Whether signs stand for several names; the question mark of a web address begins its query."""
    return any(sign in path for sign in _WILD if sign != "?" or not path.startswith(("http://", "https://")))


def _refuse_several_splits(address: str, path: str, names: list[str]) -> None:
    """A data set that holds training and test files is never read whole, since a run would train on the test."""
    below = [name.removeprefix(path).lower() for name in names]
    splits = [split for split in _SPLITS if any(split in name for name in below)]
    if len(splits) > 1 and not is_pattern(path):
        raise DataError(
            f"{address} holds files of several splits ({' and '.join(splits)}), such as {names[0]}: name the files, as "
            f"in {address}/**/*{splits[0]}*, or a folder of them."
        )


def _file_system(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    whole = address if "://" in address else f"hf://datasets/{address.removeprefix(_HUB)}"
    files, path = url_to_fs(whole)
    return files, path


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Turn what a file system raises into a sentence."""
    try:
        yield
    except MegacovError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no prompt file {name}; correct data.path.") from error
    except OSError as error:
        raise DataError(
            f"The prompt file {name} cannot be read ({error.strerror or _in_words(error)}); correct data.path."
        ) from error
    except Exception as error:
        # A file system of fsspec is a plug-in and raises what its own client does, as httpx's errors without a network.
        if local_path(name) is not None:
            raise
        raise DataError(
            f"The prompt file {name} cannot be read ({_in_words(error)}); correct data.path, or copy the file to this "
            "machine and name the copy."
        ) from error


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""Mounts of a job's container: what the run reads and writes, or those of the site, if they hold all of that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megacov.errors import ConfigError

_AT_MOST = 8  # entries of a model folder whose links are followed; all files of a snapshot link to the same folder


@dataclass(frozen=True)
class Place:
    """An absolute path that the container must see under the same name, and what names it.

    is_written: whether the run writes there; a path that it only reads may be in the image.
    """

    what: str
    path: Path
    is_written: bool = False


def place_of_folder(what: str, path: Path) -> Iterator[Place]:
    """A folder, and the folders to which links in it lead, as in the cache of Hugging Face."""
    folder = Path(os.path.abspath(path))  # without "..", which could lead out of a mount unseen
    yield Place(what, folder)
    entries = sorted(folder.iterdir())[:_AT_MOST] if folder.is_dir() else []
    for target in sorted({_folder_of(entry.resolve()) for entry in entries if entry.is_symlink()}):
        yield Place(f"{what}, whose files are links to it", target)


def place_of_file(what: str, path: Path, *, is_written: bool = False) -> Iterator[Place]:
    """The folder of a file, since a file that is replaced would stay the old one in its mount."""
    file = Path(os.path.abspath(path))
    yield Place(what, _without_root(file), is_written)
    if file.is_symlink():
        yield Place(f"{what}, which is a link to it", _without_root(file.resolve()))


def _folder_of(target: Path) -> Path:
    return target if target.is_dir() else _without_root(target)


def _without_root(file: Path) -> Path:
    """The folder of a file, or the file where that folder is /, which would hide the whole image."""
    return file if file.parent == file.parent.parent else file.parent


def find_mounts(places: Sequence[Place], given: str, *, always: Iterable[Path] = ()) -> str:
    """Derive the mounts of a container, or check those that the site gives.

    Args:
        places: everything that the run reads and writes.
        given: mounts of the site, HOST:CONTAINER pairs separated by commas; empty to derive them.
        always: folders that the container sees without any mount.

    Returns:
        The mounts, in the form of `given`.

    Raises:
        ConfigError: a path cannot be written as a mount, or exists on this machine and is outside the given mounts.
    """
    for place in places:
        if any(sign in str(place.path) for sign in ",:"):
            raise ConfigError(
                f"{place.what} is {place.path}, and paths that are mounted into a container cannot contain commas or "
                "colons: rename it."
            )
    if not given:
        return ",".join(f"{root}:{root}" for root in _roots(place.path for place in places))
    seen = [*(_target(mount) for mount in given.split(",") if mount), *always]
    needed = (place for place in places if place.is_written or place.path.exists())
    unseen = {place.path: place.what for place in needed if not any(place.path.is_relative_to(s) for s in seen)}
    if unseen:
        roots = _roots(unseen)
        names = " and ".join(f"{unseen[root]} ({root})" for root in roots)
        missing = ",".join(f"{root}:{root}" for root in roots)
        raise ConfigError(
            f"MEGACOV_MOUNTS is {given}, so that the container does not see {names}: set "
            f"MEGACOV_MOUNTS={given},{missing} or leave it out, and what the run needs is mounted."
        )
    return given


def _target(mount: str) -> Path:
    """Path in the container of HOST, HOST:CONTAINER or HOST:CONTAINER:FLAGS."""
    host, *inside = mount.split(":")
    return Path(os.path.normpath(inside[0] if inside else host))


def _roots(paths: Iterable[Path]) -> list[Path]:
    """The paths without those that are below another one."""
    every = sorted(set(paths))
    return [path for path in every if not any(path != other and path.is_relative_to(other) for other in every)]

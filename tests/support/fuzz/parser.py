"""One reader of outside text, as the fuzzer sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.fuzz.mutations import Kind


@dataclass(frozen=True)
class Parser:
    """A reader of one kind of text.

    read: reads a content; the folder is kept between cases.
    covers: functions by file below megacov/ whose branches the cases must reach; none for all of the file.
    refusals: errors, beside megacov's own, that say that the content is refused.
    prepare: writes what the reader needs beside the content.
    refuses: whether some cases are refused; other readers leave out what they do not understand.
    weight: share of the cases, relative to others.
    """

    name: str
    kind: Kind
    seeds: tuple[bytes, ...]
    read: Callable[[Path, bytes], object]
    covers: Mapping[str, tuple[str, ...]]
    refusals: tuple[type[Exception], ...] = ()
    prepare: Callable[[Path], object] = field(default=lambda _folder: None)
    refuses: bool = True
    weight: float = 1.0

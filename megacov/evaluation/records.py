"""Finished problems, and the file of them that lets an evaluation go on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pydantic import TypeAdapter, ValidationError

from megacov.errors import DataError
from megacov.json_text import JsonError, parse_json
from megacov.types import FinishReason

FORMAT = 1
_LARGEST_LINE = 2**30  # thousands of long responses to one problem


@dataclass(frozen=True, slots=True)
class Response:
    """One judged response.

    reward: the verifier's; 0 for a failure of the verifier and for a response that the length limit cut.
    failure: kind of the verifier's failure, or None.
    log_prob: sum of the server's log-probs of its tokens.
    answer: its answer as maj@k counts it; None if it gives none.
    versions: oldest and newest version of the weights that sampled it, in an evaluation during training.
    """

    text: str
    reward: float
    failure: str | None
    finish_reason: FinishReason
    num_tokens: int
    log_prob: float
    answer: str | None
    versions: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """One problem with all of its responses.

    set_name, index: its set, and its place in the file.
    digest: of its prompt, its answer, and its row if the verifier asks for that.
    """

    set_name: str
    index: int
    digest: str
    responses: tuple[Response, ...]


_ANSWERED = TypeAdapter(Answered)


class RecordFile:
    """A file of finished problems, one JSON object a line, that belongs to one evaluation; a context.

    finished: the problems in the file, by set and index.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Open the file, and read what an evaluation that was stopped has left there.

        Args:
            path: file, which is created if it is missing, as is its folder.
            identity: what decides the results; an earlier evaluation must have the same.

        Raises:
            DataError: the file belongs to another evaluation, is damaged, cannot be written, or is in use.
        """
        self._path = path
        self.finished: dict[tuple[str, int], Answered] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            self._lock()
            self._read(identity)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        """This file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close. Everything that was added is in the file already."""
        with suppress(OSError):  # a full disk, which `add` has reported, refuses the rest of that line again
            self._file.close()

    def add(self, answered: Answered) -> None:
        """Append a finished problem; raises DataError if the disk refuses it."""
        self._append(asdict(answered))
        self.finished[answered.set_name, answered.index] = answered

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another evaluation writes to {self._path}: wait until it ends, or name another folder with --out."
            ) from error
        except OSError:
            pass  # some network file systems have no locks

    def _read(self, identity: Mapping[str, Any]) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break  # the evaluation was stopped while it wrote this line
            values = self._parse(line, number)
            if number == 1:
                self._compare(values, identity)
            else:
                answered = self._answered(line, number)
                self.finished[answered.set_name, answered.index] = answered
            end += len(line)
        try:
            self._file.truncate(end)
        except OSError as error:
            raise self._not_writable(error) from error
        if end == 0:
            self._append(dict(identity))

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values = parse_json(line, max_bytes=_LARGEST_LINE)
        except JsonError as error:
            raise self._damaged(number, str(error)) from error
        if not isinstance(values, dict):
            raise self._damaged(number, "it is no object")
        return values

    def _compare(self, found: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        for key in identity:
            if found.get(key) != identity[key]:
                raise DataError(
                    f"{self._path} is of an evaluation with another {key} ({_short(found.get(key))} there, "
                    f"{_short(identity[key])} now): name another folder with --out, or remove this one."
                )

    def _answered(self, line: bytes, number: int) -> Answered:
        try:
            return _ANSWERED.validate_json(line, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the line"
            raise self._damaged(number, f"{place}: {first['msg']}") from error

    def _append(self, values: Mapping[str, Any]) -> None:
        line = json.dumps(values, sort_keys=True, allow_nan=False) + "\n"
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise self._not_writable(error) from error

    def _damaged(self, number: int, why: str) -> DataError:
        return DataError(f"{self._path}, line {number} is damaged ({why}): remove the file, or name another --out.")

    def _not_writable(self, error: OSError) -> DataError:
        return DataError(
            f"{self._path} cannot be written ({error.strerror}): free space there, or name another folder with --out; "
            "problems that it holds are not sampled again."
        )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 24 else text[:12] + "..."

"""Writes RUN/samples and keeps it within its limit: the oldest steps lose the values of their tokens, then go."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megacov.errors import DataError
from megacov.files import write_atomically
from megacov.json_text import JsonError, parse_json
from megacov.monitor.samples import FOLDER_NAME, TOKEN_FIELDS, sample_file, sample_files


class SamplesFolder:
    """One file a step, written whole. Only rank 0 of a run has one, and no other process writes to the folder.

    num_thinned: steps that have lost the values of their tokens, or all of their responses, since the start of the
        process.
    """

    def __init__(self, run_folder: Path, *, limit_bytes: int) -> None:
        """Look at nothing yet.

        Args:
            run_folder: folder that holds the folder.
            limit_bytes: size of all files together beyond which old steps are thinned; the step that is written last
                stays whole. 0 for no limit.
        """
        self._run, self._limit = run_folder, limit_bytes
        self._sizes: dict[int, int] | None = None
        self._without_tokens: set[int] = set()
        self._thinned: set[int] = set()
        self._has_warned = False

    @property
    def num_thinned(self) -> int:
        return len(self._thinned)

    def write(self, responses: Sequence[Mapping[str, Any]], *, step: int) -> None:
        """Write the responses of a step, in place of what an earlier attempt at the step has written.

        A folder that was deleted is made again.

        Args:
            responses: JSON objects.
            step: from 1.

        Raises:
            DataError: the disk refuses it.
        """
        folder, path = self._run / FOLDER_NAME, sample_file(self._run, step)
        text = "".join(f"{json.dumps(response, ensure_ascii=False, allow_nan=False)}\n" for response in responses)
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True)  # the run folder itself may have been renamed
                print(f"megacov: warning: {folder} was deleted: it is made again.", flush=True)
                self._sizes = None
            write_atomically(path, text)
            self._without_tokens.discard(step)
            if self._limit > 0:
                if self._sizes is None:
                    self._sizes = {step: path.stat().st_size for step, path in sample_files(self._run).items()}
                self._sizes[step] = len(text.encode())
                self._thin(self._sizes, newest=step)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}.") from error

    def _thin(self, sizes: dict[int, int], *, newest: int) -> None:
        excess = sum(sizes.values()) - self._limit
        if excess <= 0:
            return
        if not self._has_warned:
            self._has_warned = True
            print(
                f"megacov: {self._run / FOLDER_NAME} has reached monitor.samples_mb: the oldest steps lose the values "
                "of their tokens from now on, and then their texts.",
                file=sys.stderr,
            )
        older = [step for step in sorted(sizes) if step != newest]
        for step in older:
            if excess > 0 and step not in self._without_tokens:
                excess -= self._drop_tokens(step, sizes)
        for step in older:
            if excess > 0 and step in sizes:
                sample_file(self._run, step).unlink(missing_ok=True)
                self._thinned.add(step)
                excess -= sizes.pop(step)

    def _drop_tokens(self, step: int, sizes: dict[int, int]) -> int:
        """The number of bytes that this has freed."""
        self._without_tokens.add(step)
        try:
            lines = sample_file(self._run, step).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:  # somebody has made room
            return sizes.pop(step)
        text = "".join(f"{_without_tokens(line)}\n" for line in lines)
        freed = sizes[step] - len(text.encode())
        if freed <= 0:
            return 0
        write_atomically(sample_file(self._run, step), text)
        self._thinned.add(step)
        sizes[step] -= freed
        return freed


def _without_tokens(line: str) -> str:
    """The line without the values of its tokens; unchanged if it cannot be read."""
    try:
        response = parse_json(line)
    except JsonError:
        return line
    if not isinstance(response, dict):
        return line
    return json.dumps({key: value for key, value in response.items() if key not in TOKEN_FIELDS}, ensure_ascii=False)

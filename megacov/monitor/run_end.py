"""RUN/ended.json: how a run ended and why, for `megacov status`. Reading it needs the standard library only."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from megacov.errors import MegacovError
from megacov.files import write_atomically
from megacov.json_text import JsonError, read_json

ENDED_NAME = "ended.json"


@dataclass(frozen=True)
class RunEnd:
    """The end of a run.

    code: exit code.
    reason: the sentence that the run ended with; empty where there is none.
    time: when it ended, in seconds since the epoch.
    pid: process that knew the reason.
    """

    code: int
    reason: str
    time: float
    pid: int


class NotedEnd:
    """Writes down how the context ended. Only rank 0 of a run has one, and only while it holds the run's lock."""

    def __init__(self, run_folder: Path) -> None:
        """Write nothing before the context is left."""
        self._folder = run_folder

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the error's exit code and sentence, or code 0."""
        write_end(self._folder, *_code_and_reason(error))


def write_end(run_folder: Path, code: int, reason: str) -> None:
    """Write down how a run ended. A folder that cannot be written is left as it is.

    Args:
        run_folder: folder that will hold the file.
        code: exit code.
        reason: sentence that the run ended with, or nothing.
    """
    path = run_folder / ENDED_NAME
    end = RunEnd(code, reason, time.time(), os.getpid())
    with suppress(OSError):  # the run has a sentence of its own, and this file only repeats it
        write_atomically(path, json.dumps(asdict(end)) + "\n")


def read_end(run_folder: Path, *, since: float) -> RunEnd | None:
    """Read how a run ended.

    Args:
        run_folder: folder of the run.
        since: time before which ends do not count, because a later process has continued the run; seconds since the
            epoch.

    Returns:
        The end; None if the run has not ended, if the process that ended could not write, or if the file is damaged.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        content = read_json(run_folder / ENDED_NAME)
    except FileNotFoundError:
        return None
    except JsonError:
        return None
    match content:
        case {"code": int(code), "reason": str(reason), "time": int() | float() as ended, "pid": int(pid)}:
            return RunEnd(code, reason, float(ended), pid) if ended >= since else None
    return None


def explain_end(run_folder: Path, error: MegacovError) -> None:
    """Replace what this process has written about its end by an error that says more.

    Args:
        run_folder: folder of the run.
        error: error that the process ends with.
    """
    with suppress(OSError):
        end = read_end(run_folder, since=0.0)
        if end is not None and end.pid == os.getpid():
            write_end(run_folder, *_code_and_reason(error))


def settle_end(run_folder: Path, code: int, *, since: float) -> None:
    """Write down the exit code of a run whose ranks have all ended, and keep the reason that rank 0 gave.

    Args:
        run_folder: folder of the run.
        code: exit code of the command that started the ranks.
        since: time at which the ranks were started, in seconds since the epoch.
    """
    with suppress(OSError):
        end = read_end(run_folder, since=since)
        if end is None or end.code != code:
            write_end(run_folder, code, end.reason if end and end.code else "")


def _code_and_reason(error: BaseException | None) -> tuple[int, str]:
    if error is None:
        return 0, ""
    if isinstance(error, MegacovError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, ""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code, ""
    first_line = next(iter(str(error).splitlines()), "")
    return MegacovError.exit_code, f"{type(error).__name__}: {first_line}"

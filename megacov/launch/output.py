"""Standard output and error that outlive their reader: a closed pipe, a full disk or a lost terminal ends no run.

Python raises BrokenPipeError from `print` when the reader of a pipe is gone, and ends with 120 if its last flush fails.
Neither may end a run that has trained for days. Text that can no longer be shown goes to a log file, if there is one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from pathlib import Path

# After these errors a later write may succeed; after any other, nobody will read this stream again.
_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN)
_OUT, _ERR = 1, 2

_log_file: Path | None = None
_lost_for = ""


class _LastingFile(io.FileIO):
    """A standard stream whose writes never fail."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: object, /) -> int:
        """Write; where that fails, drop the text or write it to the log file."""
        view = memoryview(data)  # type: ignore[arg-type]
        _write_whole(self.fileno(), view)
        return view.nbytes


def keep_output(log_file: Path | None = None) -> None:
    """Keep this process alive when its standard output or error can no longer be written. Call it again at any time.

    If a stream fails for good, its descriptor is replaced, so child processes that inherit it are safe as well.

    Args:
        log_file: file to which a lost stream continues; its folder must exist by then, or the text is dropped.
    """
    global _log_file
    _log_file = log_file or _log_file
    for descriptor in (_OUT, _ERR):
        _open_if_closed(descriptor)
    sys.stdout, sys.stderr = _lasting(sys.stdout, _OUT), _lasting(sys.stderr, _ERR)


def write_now(text: str) -> None:
    """Write a line to standard error past Python's buffers: safe in a signal handler, where `print` may fail."""
    _write_whole(_ERR, memoryview(f"{text}\n".encode()))


def lost_for() -> str:
    """Why text that was meant for standard output is nowhere now; empty if all of it was written.

    A reader that has left does not count, nor does a process with a log file, whose output is not its result.

    Returns:
        The operating system's word for it, such as "No space left on device".
    """
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    return "" if _log_file else _lost_for


def _open_if_closed(descriptor: int) -> None:
    """Open a stream that was closed at the start (`>&-`); another file would take its number otherwise."""
    try:
        os.fstat(descriptor)
    except OSError:
        _replace(descriptor)


def _lasting(stream: io.TextIOBase | object, descriptor: int) -> io.TextIOWrapper:
    if stream is None:
        stream = open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if not isinstance(stream, io.TextIOWrapper) or _number_of(stream) != descriptor:
        return stream  # type: ignore[return-value]  # replaced, as pytest does
    is_buffered = isinstance(stream.buffer, io.BufferedWriter)  # not under PYTHONUNBUFFERED
    if isinstance(stream.buffer.raw if is_buffered else stream.buffer, _LastingFile):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    file = _LastingFile(descriptor)
    return io.TextIOWrapper(
        io.BufferedWriter(file) if is_buffered else file,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _number_of(stream: io.TextIOWrapper) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return -1


def _write_whole(descriptor: int, data: memoryview) -> None:
    global _lost_for
    is_replaced = False
    data = data.cast("B")
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError as error:
            if error.errno in _MAY_PASS or is_replaced:
                _lost_for = error.strerror or str(error) if descriptor == _OUT else _lost_for
                return
            is_replaced = True
            _replace(descriptor)


def _replace(descriptor: int) -> None:
    """Point a descriptor to the log file, or to nowhere."""
    found = -1
    if _log_file is not None:
        with contextlib.suppress(OSError):
            is_new = not _log_file.exists()
            found = os.open(_log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            if is_new:
                os.write(found, b"megacov: standard output or error was closed; it continues here.\n")
    if found < 0:
        found = os.open(os.devnull, os.O_WRONLY)
    if found != descriptor:
        os.dup2(found, descriptor)
        os.close(found)

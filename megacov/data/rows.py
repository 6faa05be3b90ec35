"""Rows of a file of prompts, one by one: JSON lines, a JSON list, or Parquet. Memory does not grow with the file.

A row that is broken does not end the reading: it comes as a `RowError`, so that all of them can be counted.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from megacov.data.files import DataFile
from megacov.errors import DataError
from megacov.json_text import MAX_JSON_BYTES, JsonError, parse_json

MAX_ROW_BYTES = MAX_JSON_BYTES
"""Longest row that is read. [bytes]"""

_BLOCK_BYTES = 1 << 20
_BATCH_BYTES = 64 << 20
_BATCH_ROWS = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SIGN = re.compile(rb'["\[\]{},]')
_END_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)

# Raised by pyarrow's to_pylist: times between microseconds, dates and time zones that Python has not, equal names in a
# struct, and text that is not UTF-8.
_NO_VALUE_OF_PYTHON = (ValueError, OverflowError, LookupError)


class RowError(ValueError):
    """A row cannot be used. The message follows the place of the row, as in " is not JSON"."""


Row = tuple[int, dict[str, Any] | RowError]
"""Number of a row, from 1, and its values by name, or why it cannot be used."""


def read_rows(file: DataFile, fields: Sequence[str] | None = None) -> tuple[str, Iterator[Row]]:
    """Read the rows of a file. Its first bytes show Parquet, and a bracket a JSON list, except in .jsonl.

    Args:
        file: the file.
        fields: fields that are needed, dots leading into nested values; a Parquet file is read for their columns only.
            None for all.

    Returns:
        What a row is called in messages, "line" or "row"; and the rows. JSON lines are numbered with the blank ones.

    Raises:
        DataError: the file cannot be read, or is no text in UTF-8; also while rows are taken.
    """
    with file.open() as opened:
        head = opened.read(4096)
    _refuse_other_encodings(file.name, head)
    if head[:4] == b"PAR1" or file.name.endswith(".parquet"):
        return "row", _read_parquet(file, fields)
    if not file.name.endswith(".jsonl") and head.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] == b"[":
        return "row", _read_list(file)
    return "line", _read_lines(file)


def schema_of(values: Any, prefix: str = "", *, depth: int = 3) -> Iterator[str]:
    """Names of the fields of a row, with dots before those of nested objects."""
    for key in sorted(values):
        inner = values[key]
        if isinstance(inner, dict) and inner and depth > 1:
            yield from schema_of(inner, f"{prefix}{key}.", depth=depth - 1)
        else:
            yield f"{prefix}{key}"


def _refuse_other_encodings(name: str, head: bytes) -> None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (head[:4] != b"PAR1" and b"\0" in head[:4]):
        raise DataError(f"{name} is text in UTF-16 or UTF-32, and megacov reads UTF-8: save it in UTF-8.")
    if head[:2] == b"\x1f\x8b":
        raise DataError(f"{name} is compressed by gzip: unpack it.")


def _parse(text: bytes, *, form: str) -> dict[str, Any]:
    try:
        values = parse_json(text, allows_nan=True)  # in fields that only a verifier may read
    except JsonError as error:
        other = "; save the file in UTF-8" if "not UTF-8" in str(error) else f"; {form}"
        raise RowError(f" is not JSON ({error}){other}.") from error
    if not isinstance(values, dict):
        raise RowError(f" is a JSON {type(values).__name__}; write an object such as {{name: value, ...}}.")
    return values


def _row(number: int, text: bytes, *, form: str = "write one JSON object a line") -> Row:
    try:
        return number, _parse(text, form=form)
    except RowError as error:
        return number, error


def _too_large() -> RowError:
    return RowError(f" has more than {MAX_ROW_BYTES} bytes, the most that a row may have; shorten or remove it.")


def _read_lines(file: DataFile) -> Iterator[Row]:
    with file.open() as opened:
        # fsspec's own files read a line without a bound.
        lines = io.BufferedReader(opened, _BLOCK_BYTES)  # type: ignore[type-var]
        number = 0
        while line := lines.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                while line and not line.endswith(b"\n"):
                    line = lines.readline(_BLOCK_BYTES)
                yield number, _too_large()
            elif line.strip():
                yield _row(number, line.removesuffix(b"\n"))


def _read_list(file: DataFile) -> Iterator[Row]:
    with file.open() as opened:
        blocks = iter(lambda: opened.read(_BLOCK_BYTES), b"")
        for number, text in enumerate(_elements(blocks), start=1):
            if isinstance(text, RowError):
                yield number, text
            else:
                yield _row(number, text, form="write a list of JSON objects")


def _elements(blocks: Iterable[bytes]) -> Iterator[bytes | RowError]:
    """The texts of a JSON list's elements, and an error for one that is too long or after which the list does not end.

    Only brackets, commas and strings are looked at, so that an element can be parsed, and refused, on its own.
    """
    depth, in_string, is_escaped, is_over, is_too_long, num_found = 0, False, False, False, False, 0
    element = bytearray()

    def finished(last: bytes) -> bytes | RowError:
        text = _too_large() if is_too_long else bytes(element + last)
        element.clear()
        return text

    for block in blocks:
        start = at = 1 if is_escaped else 0
        start, is_escaped = 0, False
        while not is_over:
            if in_string:
                end = _END_OF_STRING.match(block, at)
                if end is None:
                    rest = block[at:]
                    is_escaped = (len(rest) - len(rest.rstrip(b"\\"))) % 2 == 1
                    break
                at, in_string = end.end(), False
            sign = _SIGN.search(block, at)
            if sign is None:
                break
            at = sign.end()
            if sign[0] == b'"':
                in_string = True
            elif sign[0] in b"[{":
                depth += 1
                start = at if depth == 1 else start
            elif sign[0] in b"]}":
                depth -= 1
                is_over = depth == 0
            if is_over or (sign[0] == b"," and depth == 1):
                text = finished(block[start : sign.start()])
                if isinstance(text, RowError) or text.strip() or num_found or not is_over:
                    yield text
                    num_found += 1
                start, is_too_long = at, False
        element += block[start:]
        if len(element) > MAX_ROW_BYTES:
            is_too_long = True
            element.clear()
    if is_too_long:
        yield _too_large()
    elif not is_over:  # also where the last element is whole: elements after it may be lost
        yield RowError(" is cut off: the list has no closing bracket; copy or write the file again.")
    elif element.strip():
        yield bytes(element)


def _read_parquet(file: DataFile, fields: Sequence[str] | None) -> Iterator[Row]:
    # Imported here, since JSON does not need it.
    from pyarrow import ArrowException, parquet

    with file.open() as opened:
        try:
            table = parquet.ParquetFile(opened)
            columns = None if fields is None else _columns(table.schema_arrow, fields)
            number = 0
            for batch in _batches(table, columns):
                for row in _rows_of(batch):
                    number += 1
                    yield number, row
        except (ArrowException, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{file.name} cannot be read as Parquet ({reason}); correct data.path.") from error


def _columns(schema: Any, fields: Sequence[str]) -> list[str] | None:
    """Columns that hold the fields; None for all, where a field is missing and a message must show what is there."""
    found: list[str] = []
    for field in fields:
        parts = field.split(".")
        owners = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        found += [name for name in owners if name in schema.names]
        if not any(name in schema.names for name in owners):
            return None
    return list(dict.fromkeys(found))


def _batches(table: Any, columns: list[str] | None) -> Iterator[Any]:
    """Batches of rows that fit into memory, by the mean size of a row in each row group."""
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        size = _BATCH_BYTES * max(about.num_rows, 1) // max(about.total_byte_size, 1)
        yield from table.iter_batches(
            batch_size=max(1, min(size, _BATCH_ROWS)), row_groups=[group], columns=columns, use_threads=False
        )


def _rows_of(batch: Any) -> Iterator[dict[str, Any] | RowError]:
    batch = _with_short_floats(batch)
    if batch.nbytes <= MAX_ROW_BYTES:
        try:
            yield from batch.to_pylist()
            return
        except _NO_VALUE_OF_PYTHON:
            pass  # nothing has been handed out yet: the row is found below
    for place in range(batch.num_rows):
        yield _only_row_of(batch.slice(place, 1))


def _only_row_of(one: Any) -> dict[str, Any] | RowError:
    from pyarrow import types

    # A column of a dictionary type holds its whole dictionary in every slice.
    columns = (each.dictionary_decode() if types.is_dictionary(each.type) else each for each in one.columns)
    if sum(column.nbytes for column in columns) > MAX_ROW_BYTES:
        return _too_large()
    try:
        row: dict[str, Any] = one.to_pylist()[0]
    except UnicodeDecodeError:
        return RowError(" holds text that is not UTF-8; write it in UTF-8.")
    except _NO_VALUE_OF_PYTHON as error:
        reason = " ".join(str(error).split())[:200]
        return RowError(f" holds a value that Python cannot hold ({reason}); write it as a text or a number.")
    return row


def _with_short_floats(batch: Any) -> Any:
    """The same batch with floats of 32 bits as their shortest decimals: 0.2, and not 0.20000000298023224."""
    from pyarrow import compute, float64, string, types

    for place, field in enumerate(batch.schema):
        if types.is_float32(field.type):
            column = compute.cast(compute.cast(batch.column(place), string()), float64())
            batch = batch.set_column(place, field.name, column)
    return batch

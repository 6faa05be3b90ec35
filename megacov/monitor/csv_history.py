"""Reads a table of metrics, one step a row, as pandas, Weights & Biases, TensorBoard or a spreadsheet write it."""

from __future__ import annotations

import csv
import io
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from megacov.errors import DataError
from megacov.monitor.history import History, Series

STEP_COLUMNS = (
    "step",
    "_step",
    "global_step",
    "training/global_step",
    "train/global_step",
    "rollout/step",
    "train/step",
    "iteration",
)
"""Names of the column of steps, in any case; the first that there is counts. `_step` and `Step` are W&B's,
`training/global_step` verl's, `rollout/step` and `train/step` slime's."""

_SEPARATORS = ",;\t"
# W&B's pages export each curve with its extremes among the points that share a pixel.
_EXTREMES = ("__MIN", "__MAX")
_RUN_SEPARATOR = " - "


def read_csv(path: Path, *, step_column: str | None = None, tags: Collection[str] | None = None) -> History:
    """Read a table whose first line names its columns, in UTF-8, separated by commas, semicolons or tabs.

    An empty cell is no point. Where a step has several rows, the last with a value counts. A panel of Weights & Biases
    is exported with the run's name before each tag, which is removed if the table is of one run, and with columns
    `*__MIN` and `*__MAX`, which are left out. Rows and cells that cannot be read are named in `History.problems`.

    Args:
        path: the table.
        step_column: name of the column of steps; None for the first of STEP_COLUMNS.
        tags: columns to read; None for all that hold numbers.

    Returns:
        Each column as a scalar; no texts.

    Raises:
        DataError: the file cannot be read, is no such table, or has no column of steps.
    """
    lines, problems = _read_lines(path)
    separator = max(_SEPARATORS, key=lines[0].count)
    try:
        header, *rows = csv.reader(lines, delimiter=separator)
    except csv.Error as error:
        raise DataError(f"{path} is no table ({error}): give a CSV file with a line of column names.") from error
    names = _names(header, path)
    steps_at = _find_steps(names, step_column, path)
    steps, skipped = _steps(rows, steps_at, len(header))
    if skipped:
        problems.append(
            f"{path}: {len(skipped)} rows do not count, the first of them row {skipped[0] + 2}: they have no whole"
            f" number as step, or another number of cells than the {len(header)} of the first line."
        )
    scalars: dict[str, Series] = {}
    repeated: dict[str, int] = {}
    for column, name in names.items():
        if column != steps_at and name and (tags is None or name in tags):
            series, num_repeated, bad = _column(rows, steps, column)
            if len(series.steps):
                scalars[name] = series
                repeated |= {name: num_repeated} if num_repeated else {}
            if bad and (len(series.steps) or tags is not None):
                problems.append(f"{path}: {len(bad)} cells of {name} are no numbers, the first is {bad[0][:40]!r}.")
    if repeated:
        most = max(repeated, key=lambda name: repeated[name])
        problems.append(
            f"{path}: a step has several rows with a value, {repeated[most]} times in column {most}, and the last"
            " counts: give one row a step if each is a mean over a part of it."
        )
    if rows and not scalars and tags is None:
        problems.append(f"{path}: no cell but the steps is a number, which has a point and no comma.")
    return History(scalars=scalars, texts={}, problems=tuple(problems))


def _read_lines(path: Path) -> tuple[list[str], list[str]]:
    """Lines of the file, without a last one that may be cut off; and problems."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"{path} cannot be read ({reason}): give a CSV file in UTF-8.") from error
    lines = list(io.StringIO(text, newline=None))
    if not any(line.strip() for line in lines):
        raise DataError(f"{path} is empty: give a CSV file with a line of column names.")
    # A number that is cut off is another number; one in quotes is whole.
    if len(lines) > 1 and lines[-1][-1] not in '\n"' and lines[-1].strip():
        return lines[:-1], [f"{path} does not end with a line break: its last row may be cut off and does not count."]
    return lines, []


def _names(header: Sequence[str], path: Path) -> dict[int, str]:
    """Tag by column."""
    names = {column: name.strip() for column, name in enumerate(header) if not name.endswith(_EXTREMES)}
    runs = {name.rpartition(_RUN_SEPARATOR)[0] for name in names.values() if _RUN_SEPARATOR in name}
    if len(runs) == 1:
        names = {column: name.rpartition(_RUN_SEPARATOR)[2] for column, name in names.items()}
    given = [name for name in names.values() if name]
    repeated = sorted(name for name, count in Counter(given).items() if count > 1)
    if repeated:
        raise DataError(f"{path} has several columns named {repeated[0]}: rename all but one.")
    return names


def _find_steps(names: dict[int, str], given: str | None, path: Path) -> int:
    columns = {name if given is not None else name.lower(): column for column, name in names.items()}
    wanted = STEP_COLUMNS if given is None else (given,)
    for name in wanted:
        if name in columns:
            return columns[name]
    shown = ", ".join([name for name in names.values() if name][:12])
    raise DataError(f"{path} has no column {' or '.join(wanted)}: name its column of steps, one of {shown}.")


def _steps(rows: Sequence[Sequence[str]], column: int, num_columns: int) -> tuple[list[int | None], list[int]]:
    """The step of each row, None for those that do not count; and the indices of those."""
    steps: list[int | None] = []
    skipped = []
    for index, row in enumerate(rows):
        step = _number(row[column]) if len(row) == num_columns else None
        is_whole = step is not None and step.is_integer() and abs(step) < 2**53
        steps.append(int(step) if step is not None and is_whole else None)
        if row and not is_whole:
            skipped.append(index)
    return steps, skipped


def _column(rows: Sequence[Sequence[str]], steps: Sequence[int | None], column: int) -> tuple[Series, int, list[str]]:
    """A column's points, the number of cells that a later row replaces, and the cells that are no numbers."""
    found, values, bad = array("q"), array("d"), []
    for step, row in zip(steps, rows, strict=True):
        cell = row[column].strip() if step is not None else ""
        if step is None or not cell:
            continue
        value = _number(cell)
        if value is None:
            bad.append(cell)
        else:
            found.append(step)
            values.append(value)
    series = Series.of_points(found, values)
    return series, len(found) - len(series.steps), bad


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None

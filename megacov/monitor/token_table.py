"""The tokens of the vocabulary that matter most in a step: selected, with entropy, with covariance, losing entropy.

RUN/tokens.jsonl holds a table a line. Reading it needs no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from megacov.errors import DataError
from megacov.files import write_atomically
from megacov.json_text import MAX_JSON_BYTES, JsonError, parse_json

if TYPE_CHECKING:
    from megacov.monitor.breakdown import TokenSums

FILE_NAME = "tokens.jsonl"
NUM_ROWS = 20

LISTS = {
    "selected": "most often selected",
    "lost": "most entropy lost since the last table",
    "entropy": "most entropy",
    "covariance": "largest sum of covariances",
}
"""Lists of a table, with what their tokens are first in."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One token of the vocabulary in one step.

    token: its id.
    text: its string.
    count: loss tokens of the step that are this one.
    kept: those that took part in the loss.
    selected: those that the covariance method acted on.
    entropy: mean where it was sampled. [nats]
    covariance: mean over the kept ones; None if there is none. [nats]
    lost: its part of the fall of the mean entropy of all loss tokens since the table before; the parts of all tokens
        add up to that fall. None in the first table of a start of the run. [nats]
    """

    token: int
    text: str
    count: int
    kept: int
    selected: int
    entropy: float | None
    covariance: float | None
    lost: float | None


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The first tokens of a step by several orders.

    step: from 1.
    since: step of the table before, which `lost` is counted from; None for the first of a start of the run.
    count: loss tokens.
    selected: those that the covariance method acted on.
    entropy: mean over the loss tokens; None where it is not finite. [nats]
    lists: rows by the names in `LISTS`, at most NUM_ROWS each; a list may be empty.
    """

    step: int
    since: int | None
    count: int
    selected: int
    entropy: float | None
    lists: Mapping[str, tuple[TokenRow, ...]]


class TokenTables:
    """Makes the tables of a run and appends them to RUN/tokens.jsonl. Only rank 0 has one.

    It remembers the sums of the table before, two numbers a token of the vocabulary.
    """

    def __init__(self, run_folder: Path, *, text_of: Callable[[int], str], first_step: int | None = None) -> None:
        """Begin without a table before.

        Args:
            run_folder: folder of the file, which is made when the first table is due.
            text_of: string of a token.
            first_step: first step of a resumed run; tables from it on are removed, since the run repeats their steps.
                None for a new run.

        Raises:
            DataError: they cannot be removed.
        """
        self._path, self._text_of = run_folder / FILE_NAME, text_of
        self._before: tuple[int, NDArray[np.float64]] | None = None
        if first_step is not None and self._path.is_file():
            kept = [table for table in read_token_tables(run_folder) if table.step < first_step]
            with _disk(self._path):
                write_atomically(self._path, "".join(map(_to_line, kept)))

    def add(self, sums: TokenSums, *, step: int) -> TokenTable:
        """Make the table of a step and append it to the file.

        Args:
            sums: over the tokens of the vocabulary, on the CPU.
            step: from 1.

        Returns:
            The table.

        Raises:
            DataError: the disk refuses it.
        """
        counts = sums.tokens.numpy()
        share = sums.entropy.numpy() / max(1.0, counts.sum())
        since, lost = None, None
        if self._before is not None:
            since, before = self._before
            lost = before - share
        self._before = (step, share)
        table = make_table(sums, lost, step=step, since=since, text_of=self._text_of)
        with _disk(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have renamed or deleted it
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_to_line(table))
        return table


def make_table(
    sums: TokenSums,
    lost: NDArray[np.float64] | None,
    *,
    step: int,
    since: int | None,
    text_of: Callable[[int], str],
) -> TokenTable:
    """Find the first tokens by each order; equal ones are in the order of their ids.

    Args:
        sums: over the tokens of the vocabulary, on the CPU.
        lost: [vocabulary] float64 nats, as in `TokenRow`; None without a table before.
        step: from 1.
        since: step of the table before.
        text_of: string of a token.

    Returns:
        The table.
    """
    counts, kept, selected, entropy, covariance = (values.numpy() for values in sums)

    def row(token: int) -> TokenRow:
        return TokenRow(
            token=token,
            text=text_of(token),
            count=int(counts[token]),
            kept=int(kept[token]),
            selected=int(selected[token]),
            entropy=_ratio(entropy[token], counts[token]),
            covariance=_ratio(covariance[token], kept[token]),
            lost=None if lost is None else _ratio(lost[token], 1.0),
        )

    orders = {"selected": selected, "lost": lost, "entropy": entropy, "covariance": covariance}
    lists = {
        name: () if values is None else tuple(row(token) for token in _largest(values))
        for name, values in orders.items()
    }
    mean = _ratio(entropy.sum(), counts.sum())
    return TokenTable(step, since, int(counts.sum()), int(selected.sum()), mean, lists)


def _largest(values: NDArray[np.float64]) -> list[int]:
    """Places of the largest values above 0, the largest first; NaN is not above 0."""
    places = np.flatnonzero(values > 0)
    order = np.lexsort((places, -values[places]))[:NUM_ROWS]
    return [int(place) for place in places[order]]


def _ratio(total: float, count: float) -> float | None:
    """To six digits; None where it is no number."""
    value = total / count if count else math.nan
    return float(f"{value:.6g}") if math.isfinite(value) else None


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}.") from error


def _to_line(table: TokenTable) -> str:
    return json.dumps(asdict(table), ensure_ascii=False) + "\n"


def read_token_tables(run: Path, *, on_problem: Callable[[str], object] = lambda sentence: None) -> list[TokenTable]:
    """Read the tables of a run. A line that cannot be read is named and passed over.

    Args:
        run: run folder.
        on_problem: called with a sentence for each line that cannot be read.

    Returns:
        The tables by step; the last one of a step counts.
    """
    path, reader = run / FILE_NAME, TypeAdapter(TokenTable)
    tables: dict[int, TokenTable] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_JSON_BYTES + 1), b""), start=1):
                try:
                    table = reader.validate_python(parse_json(line))
                    tables[table.step] = table
                except JsonError as error:
                    on_problem(f"{path}, line {number} cannot be read: {error}.")
                except ValidationError as error:
                    first = error.errors()[0]
                    place = ".".join(map(str, first["loc"])) or "the line"
                    on_problem(f"{path}, line {number} cannot be read: {place}: {first['msg']}.")
    except FileNotFoundError:
        return []
    except OSError as error:
        on_problem(f"{path} cannot be read: {error.strerror}.")
    return [tables[step] for step in sorted(tables)]


def render_markdown(table: TokenTable) -> str:
    """A table for TensorBoard's page of texts.

    Args:
        table: of one step.

    Returns:
        Markdown: a sentence, then a heading and a table for each list that is not empty.
    """
    entropy = "-" if table.entropy is None else f"{table.entropy:.4g}"
    lines = [
        f"Step {table.step}: {table.count} loss tokens, {table.selected} of them selected, entropy {entropy} nats."
    ]
    for name, order in LISTS.items():
        rows = table.lists.get(name, ())
        if rows:
            since = f" (of step {table.since})" if name == "lost" else ""
            lines += ["", f"**{order[0].upper()}{order[1:]}{since}**", ""]
            lines += [
                "| token | id | count | selected | entropy | covariance | lost |",
                "|---|--:|--:|--:|--:|--:|--:|",
            ]
            lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines)


def _cells(row: TokenRow) -> Iterator[str]:
    """Signs that Markdown or HTML would read are written as numbers."""
    text = json.dumps(row.text, ensure_ascii=False)
    yield "".join(sign if sign.isalnum() or sign == " " else f"&#{ord(sign)};" for sign in text)
    yield from map(str, (row.token, row.count, row.selected))
    yield from ("-" if value is None else f"{value:.4g}" for value in (row.entropy, row.covariance, row.lost))

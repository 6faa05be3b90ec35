"""Prompts as a table: a few flat buffers in place of millions of objects, each made when it is asked for."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, overload

from megacov.types import Prompt


class _Texts:
    """Texts in one buffer of UTF-8."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self._bytes += text.encode()
        self._ends.append(len(self._bytes))

    def __getitem__(self, place: int) -> str:
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode()

    @property
    def num_bytes(self) -> int:
        return len(self._bytes) + self._ends.itemsize * len(self._ends)


class PromptTable(Sequence[Prompt]):
    """The prompts of one source. They are numbered on from `first_index`, and all have the source's place.

    A prompt costs its text, its answer and four bytes a token, and 28 bytes more. Rows are kept as JSON.

    remark: a sentence about prompts that were left out; empty if there are none.
    """

    def __init__(self, *, source: int = 0, first_index: int = 0, keeps_rows: bool = False) -> None:
        """Begin an empty table.

        Args:
            source: place of the source among those of the run.
            first_index: index of the first prompt.
            keeps_rows: whether prompts carry their whole rows.
        """
        self.source, self.first_index = source, first_index
        self.remark = ""
        self._token_ids, self._ends, self._numbers = array("i"), array("q", [0]), array("i")
        self._texts, self._answers = _Texts(), _Texts()
        self._rows = _Texts() if keeps_rows else None
        self._file_starts: list[int] = []
        self._files: list[tuple[str, str]] = []

    def begin_file(self, name: str, word: str) -> None:
        """All prompts that are appended from now on come from this file, whose rows are called by `word`."""
        self._file_starts.append(len(self))
        self._files.append((name, word))

    def append(
        self, text: str, token_ids: Sequence[int], answer: str, *, number: int, row: dict[str, Any] | None = None
    ) -> None:
        """Add a prompt.

        Args:
            text: the text that its tokens encode.
            token_ids: its tokens.
            answer: what the verifier needs.
            number: number of its row in the file, from 1.
            row: its whole row, if the table keeps rows.
        """
        self._token_ids.extend(token_ids)
        self._ends.append(len(self._token_ids))
        self._numbers.append(number)
        self._texts.append(text)
        self._answers.append(answer)
        if self._rows is not None:
            self._rows.append(json.dumps(row, ensure_ascii=False, default=str))

    def place_of(self, index: int) -> str:
        """Where a prompt comes from, by its index: "FILE, line 12", or "FILE, row 12"."""
        place = index - self.first_index
        name, word = self._files[bisect_right(self._file_starts, place) - 1]
        return f"{name}, {word} {self._numbers[place]}"

    def length(self, place: int) -> int:
        """Tokens of the prompt at a place of the table."""
        return self._ends[place + 1] - self._ends[place]

    @property
    def num_tokens(self) -> int:
        """Tokens of all prompts."""
        return len(self._token_ids)

    @property
    def num_bytes(self) -> int:
        """Memory of all buffers. [bytes]"""
        arrays = sum(each.itemsize * len(each) for each in (self._token_ids, self._ends, self._numbers))
        return arrays + sum(each.num_bytes for each in (self._texts, self._answers, self._rows) if each is not None)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self._numbers)

    def __iter__(self) -> Iterator[Prompt]:
        """Make the prompts one after another."""
        return (self[place] for place in range(len(self)))

    @overload
    def __getitem__(self, place: int) -> Prompt: ...
    @overload
    def __getitem__(self, place: slice) -> list[Prompt]: ...
    def __getitem__(self, place: int | slice) -> Prompt | list[Prompt]:
        """Make the prompt at a place, or those of a slice."""
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        return Prompt(
            index=self.first_index + place,
            text=self._texts[place],
            token_ids=tuple(self._token_ids[self._ends[place] : self._ends[place + 1]]),
            answer=self._answers[place],
            source=self.source,
            row=None if self._rows is None else json.loads(self._rows[place]),
        )


class JoinedPrompts(Sequence[Prompt]):
    """The prompts of several tables, one table after another. A prompt's index is its place here."""

    def __init__(self, tables: Sequence[PromptTable]) -> None:
        """Join tables, each of which is numbered on from the one before."""
        self.tables = tuple(tables)
        self._starts = [table.first_index for table in self.tables]

    def place_of(self, index: int) -> str:
        """Where a prompt comes from, by its index, as `PromptTable.place_of`."""
        return self._table_at(index).place_of(index)

    def __len__(self) -> int:
        """Number of prompts."""
        return sum(map(len, self.tables))

    @overload
    def __getitem__(self, place: int) -> Prompt: ...
    @overload
    def __getitem__(self, place: slice) -> list[Prompt]: ...
    def __getitem__(self, place: int | slice) -> Prompt | list[Prompt]:
        """Make the prompt at a place, or those of a slice."""
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        table = self._table_at(place)
        return table[place - table.first_index]

    def _table_at(self, index: int) -> PromptTable:
        return self.tables[bisect_right(self._starts, index) - 1]

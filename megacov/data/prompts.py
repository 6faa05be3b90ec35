"""Reads prompts from files and tokenizes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from megacov.config.messages import show
from megacov.data.columns import Columns, Messages
from megacov.data.encoding import Encoder
from megacov.data.files import DataFile, Paths, find_files
from megacov.data.prompt_table import PromptTable
from megacov.data.rows import RowError, read_rows
from megacov.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 1024
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """A row that has been read. `row` holds all of its values, if they are wanted."""

    number: int
    messages: Messages
    answer: str
    row: dict[str, Any] | None = None


def load_prompts(
    path: Paths,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    prompt_field: str = "prompt",
    answer_field: str = "answer",
    answer_format: str = "plain",
    system_prompt: str | None = None,
    instruction: str | None = None,
    chat_template: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_prompt_length: int | None = None,
    too_long: Literal["drop", "refuse"] = "drop",
    keep_rows: bool = False,
    source: int = 0,
    first_index: int = 0,
) -> PromptTable:
    """Read prompts from files of JSON lines, JSON lists or Parquet, and tokenize them batch by batch.

    Args:
        path: files, folders and addresses, as `find_files` takes them.
        tokenizer: tokenizer of the model.
        vocab_size: rows of the model's embedding; every token id must be smaller.
        prompt_field: field with the prompt, a text or a list of chat messages; dots lead into nested values.
        answer_field: field with the answer for the verifier, a text or a number; dots lead into nested values.
        answer_format: form of the answer: "plain", "gsm8k" or "boxed".
        system_prompt: message of the system before each question that has none.
        instruction: text around each question, which stands at {prompt}.
        chat_template: whether to wrap messages in the tokenizer's chat template.
        chat_template_kwargs: further values for that template, by name.
        max_prompt_length: largest number of tokens in a prompt; None for no limit.
        too_long: whether longer prompts are left out, or refused.
        keep_rows: whether each prompt carries its whole row.
        source: place of the source among those of the run.
        first_index: index of the first prompt.

    Returns:
        The prompts in the order of the files. A prompt's text is the one its tokens encode.

    Raises:
        DataError: a file cannot be read, a row is broken, or prompts or tokens do not fit the limit or the vocabulary.
    """
    columns = Columns(prompt_field, answer_field, answer_format, system_prompt, instruction)
    encoder = Encoder(tokenizer, chat_template=chat_template, arguments=chat_template_kwargs)
    table = PromptTable(source=source, first_index=first_index, keeps_rows=keep_rows)
    lengths = _Lengths(max_prompt_length)
    for file in find_files(path):
        word, records = read_records(file, columns, keep_rows=keep_rows)
        table.begin_file(file.name, word)
        for batch in _batches(records):
            texts, encoded = encoder.encode([record.messages for record in batch])
            for record, text, token_ids in zip(batch, texts, encoded, strict=True):
                place = f"{file.name}, {word} {record.number}"
                _check_token_ids(place, text, token_ids, vocab_size=vocab_size)
                if lengths.fits(len(token_ids), place):
                    table.append(text, token_ids, record.answer, number=record.number, row=record.row)
    encoder.print_remarks()
    table.remark = lengths.remark(may_drop=too_long == "drop" and len(table) > 0)
    return table


def check_prompt_files(path: Paths, columns: Columns) -> None:
    """Read files of prompts without a tokenizer; raises DataError as `load_prompts` does."""
    for file in find_files(path):
        for _ in read_records(file, columns, keep_rows=False)[1]:
            pass


def read_records(file: DataFile, columns: Columns, *, keep_rows: bool) -> tuple[str, Iterator[Record]]:
    """Read the records of a file.

    Args:
        file: the file.
        columns: fields of question and answer.
        keep_rows: whether each record holds its whole row.

    Returns:
        What a row is called in messages, and the records.

    Raises:
        DataError: the file cannot be read or is empty, or rows are broken; the first is named, and the others counted,
            once all records have been taken.
    """
    word, rows = read_rows(file, None if keep_rows else columns.fields)
    return word, _records(file, word, rows, columns, keep_rows=keep_rows)


def _records(file: DataFile, word: str, rows: Any, columns: Columns, *, keep_rows: bool) -> Iterator[Record]:
    num_rows = num_broken = 0
    first = ""
    for number, values in rows:
        num_rows += 1
        try:
            if isinstance(values, RowError):
                raise values
            messages, answer = columns.read(values)
        except RowError as error:
            first = first or f"{file.name}, {word} {number}{error}"
            num_broken += 1
            continue
        if not num_broken:
            yield Record(number, messages, answer, values if keep_rows else None)
    if not num_rows:
        raise DataError(
            f"The prompt file {file.name} is empty; data.path needs files with one JSON object a line, a JSON list, or "
            "Parquet."
        )
    if num_broken > 1:
        more = "one more row is" if num_broken == 2 else f"{num_broken - 1} more rows are"
        first = f"{first.removesuffix('.')}; {more} broken, and `megacov data` lists them."
    if num_broken:
        raise DataError(first)


class _Lengths:
    """Counts prompts that are too long."""

    def __init__(self, limit: int | None) -> None:
        self._limit, self.num_too_long, self.longest, self._num, self._first = limit, 0, 0, 0, ""

    def fits(self, length: int, place: str) -> bool:
        self._num += 1
        self.longest = max(self.longest, length)
        if self._limit is None or length <= self._limit:
            return True
        self.num_too_long += 1
        self._first = self._first or place
        return False

    def remark(self, *, may_drop: bool) -> str:
        """Print and return the sentence about the prompts that were left out, if there are any, or refuse them."""
        if not self.num_too_long:
            return ""
        sentence = (
            f"{self.num_too_long} of {self._num} prompts have more than data.max_prompt_length = {self._limit} tokens, "
            f"the first in {self._first}, and the longest has {self.longest}; "
        )
        if not may_drop:
            raise DataError(f"{sentence}raise it to {self.longest} or remove them.")
        sentence += f"{self.num_too_long} are left out."
        print(f"megacov: {sentence}", flush=True)
        return sentence


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Batches that bound the memory of their tokens, also where prompts are long."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += sum(len(message["content"]) for message in record.messages)
        if len(batch) == _BATCH_ROWS or size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check_token_ids(place: str, text: str, token_ids: list[int], *, vocab_size: int) -> None:
    if not token_ids:
        raise DataError(f"{place}: the prompt {show(text)} has no token; remove the row.")
    largest = max(token_ids)
    if largest >= vocab_size:
        raise DataError(
            f"{place}: the tokenizer gives token id {largest}, outside the model's vocabulary of {vocab_size}; use the "
            "tokenizer that belongs to the model."
        )

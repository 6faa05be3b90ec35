"""What files of prompts hold: rows, broken ones, lengths, duplicates, and problems of evaluations."""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from megacov.data.columns import Columns, find_field, is_missing, messages_in
from megacov.data.encoding import Encoder
from megacov.data.files import Paths, find_files
from megacov.data.overlap import EvaluationSet, words_of
from megacov.data.prompts import Record
from megacov.data.rows import RowError, read_rows, schema_of
from megacov.errors import DataError

NUM_SHOWN = 10

_QUESTION_FIELDS = ("problem", "question", "prompt")
_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt as the policy sees it, its answer, and where it stands."""

    place: str
    text: str
    answer: str


@dataclass
class Survey:
    """What has been found. Rows without a fault are counted in `num_good`.

    faults: the first broken rows, each as a sentence; `num_broken` counts all.
    repeats: the first prompts that stood in the data before, each as a sentence; `num_repeats` counts all, and
        `num_contradictions` those of them with another answer than before.
    lengths: tokens of each good row; empty without a tokenizer.
    """

    num_good: int = 0
    num_broken: int = 0
    faults: list[str] = field(default_factory=list)
    num_repeats: int = 0
    num_contradictions: int = 0
    repeats: list[str] = field(default_factory=list)
    lengths: array[int] = field(default_factory=lambda: array("i"))
    shown: list[Shown] = field(default_factory=list)


def survey(
    path: Paths, columns: Columns, *, encoder: Encoder | None, against: Sequence[EvaluationSet], most: int
) -> Survey:
    """Read files of prompts and note what is in them.

    Args:
        path: files, folders and addresses, as `find_files` takes them.
        columns: fields of question and answer.
        encoder: encodes prompts; None without a tokenizer.
        against: evaluation sets, which note what they find.
        most: most faults and repeated prompts to keep.

    Returns:
        What was found.

    Raises:
        DataError: a file cannot be read at all, or the chat template fails.
    """
    found, draw, seen = Survey(), random.Random(0), _Seen()
    batch: list[tuple[str, Record]] = []
    for place, record in _good_rows(path, columns, found, most):
        question = "\n\n".join(message["content"] for message in record.messages if message["role"] != "system")
        seen.add(found, question, record.answer, place, most)
        words = words_of(question) if against else []
        for each in against:
            each.look_for(words, place)
        batch.append((place, record))
        if len(batch) == _BATCH_ROWS:
            _encode(batch, encoder, found, draw)
            batch.clear()
    _encode(batch, encoder, found, draw)
    return found


def read_evaluation(path: str, columns: Columns) -> EvaluationSet:
    """Read the problems of an evaluation.

    Args:
        path: its files.
        columns: fields of the data, which the evaluation may share; otherwise its question is in problem, question or
            prompt.

    Returns:
        The set.

    Raises:
        DataError: a file cannot be read, or a row has no question.
    """
    problems = []
    for file in find_files(path):
        word, rows = read_rows(file)
        for number, values in rows:
            try:
                problems.append(_question_of(values, columns))
            except RowError as error:
                raise DataError(f"{file.name}, {word} {number}{error}") from error
    if not problems:
        raise DataError(f"{path} is empty; --against needs a file of problems.")
    return EvaluationSet(path, problems)


def quantile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least a share of the values does not exceed. [unit of the values]"""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered) - 1e-9), 1) - 1]


def _question_of(values: object, columns: Columns) -> str:
    if isinstance(values, RowError):
        raise values
    assert isinstance(values, dict)
    for name in dict.fromkeys((columns.prompt_field, *_QUESTION_FIELDS)):
        question = find_field(values, name)
        if not is_missing(question):
            messages = messages_in(question, name)
            return "\n\n".join(message["content"] for message in messages if message["role"] != "system")
    there = ", ".join(schema_of(values)) or "no field"
    raise RowError(f" has no field {columns.prompt_field!r} but {there}; set data.prompt_field.")


def _good_rows(path: Paths, columns: Columns, found: Survey, most: int) -> Iterator[tuple[str, Record]]:
    for file in find_files(path):
        word, rows = read_rows(file, columns.fields)
        for number, values in rows:
            place = f"{file.name}, {word} {number}"
            try:
                if isinstance(values, RowError):
                    raise values
                messages, answer = columns.read(values)
            except RowError as error:
                found.num_broken += 1
                if len(found.faults) < most:
                    found.faults.append(f"{place}{error}")
                continue
            found.num_good += 1
            yield place, Record(number, messages, answer)


class _Seen:
    """Prompts seen so far, by a hash of 8 bytes."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._answers = array("Q")

    def add(self, found: Survey, question: str, answer: str, place: str, most: int) -> None:
        key, mark = _digest(question), _digest(answer)
        first = self._first.setdefault(key, len(self._answers))
        is_new = first == len(self._answers)
        if is_new:
            self._answers.append(mark)
            return
        found.num_repeats += 1
        found.num_contradictions += mark != self._answers[first]
        if len(found.repeats) < most:
            other = ", with another answer" if mark != self._answers[first] else ""
            found.repeats.append(f"{place} repeats an earlier prompt{other}.")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _encode(batch: list[tuple[str, Record]], encoder: Encoder | None, found: Survey, draw: random.Random) -> None:
    """Measure a batch, and keep a fair draw of all prompts so far to show (Vitter's algorithm R)."""
    if not batch:
        return
    before = found.num_good - len(batch)
    messages = [record.messages for _, record in batch]
    if encoder is None:
        texts = ["\n\n".join(each["content"] for each in one) for one in messages]
    else:
        texts, encoded = encoder.encode(messages)
        found.lengths.extend(map(len, encoded))
    for offset, ((place, record), text) in enumerate(zip(batch, texts, strict=True)):
        shown = Shown(place, text, record.answer)
        if len(found.shown) < NUM_SHOWN:
            found.shown.append(shown)
        elif (chosen := draw.randrange(before + offset + 1)) < NUM_SHOWN:
            found.shown[chosen] = shown

"""Reads prompts from a file of JSON lines and tokenizes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megacov.config.messages import show
from megacov.data.encoding import apply_chat_template, encode_plain
from megacov.errors import DataError
from megacov.json_text import JsonError, parse_json
from megacov.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class _Record:
    line: int
    text: str
    answer: str
    row: dict[str, Any] | None


def load_prompts(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    prompt_field: str = "prompt",
    answer_field: str = "answer",
    chat_template: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_prompt_length: int | None = None,
    keep_rows: bool = False,
) -> list[Prompt]:
    """Read prompts from a file with one JSON object per line; blank lines are skipped.

    Args:
        path: UTF-8 file.
        tokenizer: tokenizer of the model.
        vocab_size: rows of the model's embedding; every token id must be smaller.
        prompt_field: field with the text of the prompt.
        answer_field: field with the answer for the verifier, a text or a number.
        chat_template: whether to wrap the text as a user's message in the tokenizer's chat template.
        chat_template_kwargs: further values for that template, by name.
        max_prompt_length: largest number of tokens in a prompt; None for no limit.
        keep_rows: whether each prompt carries the whole object of its line.

    Returns:
        The prompts in the order of the file, numbered from 0. A prompt's text is the one its tokens encode.

    Raises:
        DataError: if the file cannot be read, a line is not a JSON object with both fields, a prompt is empty or
            longer than allowed, or a token is outside the model's vocabulary.
    """
    records = _read_records(path, prompt_field=prompt_field, answer_field=answer_field, keep_rows=keep_rows)
    texts = [record.text for record in records]
    encoded: list[list[int]]
    if chat_template:
        texts = apply_chat_template(texts, tokenizer, chat_template_kwargs or {})
        # A chat template already puts special tokens into the text.
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    else:
        encoded = encode_plain(texts, tokenizer)
    _check_token_ids(path, records, encoded, vocab_size=vocab_size)
    _check_lengths(path, records, encoded, max_prompt_length=max_prompt_length)
    return [
        Prompt(
            index=index,
            text=text,
            token_ids=tuple(token_ids),
            answer=record.answer,
            row=record.row,
        )
        for index, (text, token_ids, record) in enumerate(zip(texts, encoded, records, strict=True))
    ]


def check_prompt_file(path: str | Path, *, prompt_field: str, answer_field: str) -> None:
    """Read a file of prompts without a tokenizer; raises DataError as `load_prompts` does."""
    _read_records(path, prompt_field=prompt_field, answer_field=answer_field, keep_rows=False)


def _read_records(path: str | Path, *, prompt_field: str, answer_field: str, keep_rows: bool) -> list[_Record]:
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise DataError(f"There is no prompt file {path}; correct data.path.") from error
    except OSError as error:
        raise DataError(f"The prompt file {path} cannot be read ({error.strerror}); correct data.path.") from error
    records = [
        _parse_line(line, path, number, prompt_field=prompt_field, answer_field=answer_field, keep_row=keep_rows)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not records:
        raise DataError(f"The prompt file {path} is empty; data.path needs a file with one JSON object a line.")
    return records


def _parse_line(
    line: bytes, path: str | Path, number: int, *, prompt_field: str, answer_field: str, keep_row: bool
) -> _Record:
    try:
        values = parse_json(line, allows_nan=True)  # in fields that only a verifier may read
    except JsonError as error:
        raise DataError(f"{path}, line {number} is not JSON ({error}); write one JSON object a line.") from error
    if not isinstance(values, dict):
        raise DataError(
            f"{path}, line {number} is a JSON {type(values).__name__}; write an object "
            f'such as {{"{prompt_field}": ..., "{answer_field}": ...}}.'
        )
    for key, field in (("data.prompt_field", prompt_field), ("data.answer_field", answer_field)):
        if field not in values:
            found = show(", ".join(sorted(values)))[1:-1] or "no field"
            raise DataError(f"{path}, line {number} has no field {field!r} but {found}; correct the line or {key}.")
    text, answer = values[prompt_field], values[answer_field]
    if not isinstance(text, str) or not text.strip():
        found = "is empty" if text == "" or isinstance(text, str) else f"is a {type(text).__name__}"
        raise DataError(f"{path}, line {number}: the prompt in field {prompt_field!r} {found}; it must be a text.")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise DataError(
            f"{path}, line {number}: the answer in field {answer_field!r} is a {type(answer).__name__}; "
            "it must be a text or a number."
        )
    if isinstance(answer, float) and not math.isfinite(answer):
        raise DataError(f"{path}, line {number}: the answer in field {answer_field!r} is {answer}, which is no answer.")
    return _Record(line=number, text=text, answer=str(answer), row=values if keep_row else None)


def _check_token_ids(path: str | Path, records: list[_Record], encoded: list[list[int]], *, vocab_size: int) -> None:
    for record, token_ids in zip(records, encoded, strict=True):
        if not token_ids:
            raise DataError(
                f"{path}, line {record.line}: the prompt {show(record.text)} has no token; remove the line."
            )
        largest = max(token_ids)
        if largest >= vocab_size:
            raise DataError(
                f"{path}, line {record.line}: the tokenizer gives token id {largest}, outside the model's vocabulary "
                f"of {vocab_size}; use the tokenizer that belongs to the model."
            )


def _check_lengths(
    path: str | Path, records: list[_Record], encoded: list[list[int]], *, max_prompt_length: int | None
) -> None:
    lengths = [len(token_ids) for token_ids in encoded]
    if max_prompt_length is None or max(lengths) <= max_prompt_length:
        return
    too_long = [record.line for record, length in zip(records, lengths, strict=True) if length > max_prompt_length]
    raise DataError(
        f"{path}: {len(too_long)} of {len(records)} prompts have more than data.max_prompt_length = "
        f"{max_prompt_length} tokens, the first on line {too_long[0]}; raise it to {max(lengths)} or remove them."
    )

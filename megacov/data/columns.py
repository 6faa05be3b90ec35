"""From the values of a row to a question and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megacov.config.messages import show
from megacov.data.answers import read_answer
from megacov.data.rows import RowError, schema_of

Messages = list[dict[str, str]]
"""Messages of a chat, each with role and content, as transformers takes them."""

_MISSING = object()
_MOST_NAMES = 300
"""Characters of the fields' names in a message."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which fields of a row hold question and answer, and what stands around the question.

    prompt_field, answer_field: names; dots lead into nested values, unless a column has the whole name.
    answer_format: form of the answer, as `read_answer` takes it.
    system_prompt: message of the system before the question; a row that has one of its own keeps it.
    instruction: text around the question, which stands at {prompt}.
    """

    prompt_field: str = "prompt"
    answer_field: str = "answer"
    answer_format: str = "plain"
    system_prompt: str | None = None
    instruction: str | None = None

    @property
    def fields(self) -> tuple[str, str]:
        """The fields that are read."""
        return self.prompt_field, self.answer_field

    def read(self, values: Mapping[str, Any]) -> tuple[Messages, str]:
        """The messages of a row's prompt and its answer; raises RowError if a field is missing or holds neither."""
        question = self._find(values, self.prompt_field, setting="data.prompt_field")
        answer = self._find(values, self.answer_field, setting="data.answer_field")
        messages = self._messages(question)
        return messages, read_answer(answer, field=self.answer_field, form=self.answer_format)

    def _find(self, values: Mapping[str, Any], field: str, *, setting: str) -> Any:
        found = find_field(values, field)
        if found is _MISSING:
            there = repr(", ".join(schema_of(values)))[1:-1] or "no field"
            there = there if len(there) <= _MOST_NAMES else f"{there[:_MOST_NAMES]}..."
            raise RowError(f" has no field {field!r} but {there}; correct the row or {setting}.")
        return found

    def _messages(self, question: Any) -> Messages:
        messages = messages_in(question, self.prompt_field)
        if self.instruction is not None:
            last = max((place for place, each in enumerate(messages) if each["role"] == "user"), default=None)
            if last is None:
                raise RowError(f": the prompt in field {self.prompt_field!r} has no message of the user to instruct.")
            content = self.instruction.replace("{prompt}", messages[last]["content"])
            messages[last] = {**messages[last], "content": content}
        if self.system_prompt is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return messages


def find_field(values: Mapping[str, Any], field: str) -> Any:
    """The value of a field, in which dots lead into objects; a name that holds the dots itself comes first.

    A number leads to an entry of a list, from 0.

    Returns a marker of its own, which `is_missing` knows, where there is none.
    """
    if field in values:
        return values[field]
    for place, sign in enumerate(field):
        inner = values.get(field[:place]) if sign == "." else None
        if isinstance(inner, list):
            inner = {str(number): entry for number, entry in enumerate(inner)}
        if isinstance(inner, Mapping):
            found = find_field(inner, field[place + 1 :])
            if found is not _MISSING:
                return found
    return _MISSING


def is_missing(value: Any) -> bool:
    """Whether `find_field` has found nothing."""
    return value is _MISSING


def messages_in(question: Any, field: str) -> Messages:
    """The messages of a prompt, which is a text or a list of them; raises RowError for anything else."""
    if isinstance(question, str):
        if not question.strip():
            raise RowError(f": the prompt in field {field!r} is empty; it must be a text.")
        return [{"role": "user", "content": question}]
    if not isinstance(question, list) or not question:
        found = "is an empty list" if isinstance(question, list) else f"is a {type(question).__name__}"
        raise RowError(f": the prompt in field {field!r} {found}; it must be a text, or a list of messages.")
    messages = []
    for place, each in enumerate(question):
        role, content = (each.get("role"), each.get("content")) if isinstance(each, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise RowError(
                f": message {place + 1} of the prompt in field {field!r} is {show(each)}; it must have a role and a "
                "content that are texts."
            )
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] == "assistant":
        raise RowError(f": the prompt in field {field!r} ends with a message of the assistant; remove that message.")
    if not any(each["content"].strip() for each in messages):
        raise RowError(f": the prompt in field {field!r} is empty; it must be a text.")
    return messages

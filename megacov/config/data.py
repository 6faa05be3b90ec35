"""Settings of the prompts: one source or several, and how their rows become prompts."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    StrictFloat,
    StrictInt,
    WithJsonSchema,
    model_validator,
)

from megacov.config.curriculum import CurriculumSection
from megacov.config.section import Section

# Parameters of transformers' apply_chat_template that are no values of a template.
_NOT_OF_TEMPLATES = frozenset(
    """
    add_generation_prompt chat_template continue_final_message conversation max_length messages padding
    return_assistant_tokens_mask return_dict return_tensors sanitize_control_tokens tokenize tokenizer_kwargs truncation
    """.split()  # noqa: SIM905 - a list would take a line for each
)


def _listed(value: Any) -> Any:
    return (os.fspath(value),) if isinstance(value, str | os.PathLike) else value


_PATH_SCHEMA = {"type": "string", "minLength": 1}

Paths = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    Field(min_length=1),
    BeforeValidator(_listed),
    PlainSerializer(lambda paths: paths[0] if len(paths) == 1 else list(paths)),
    WithJsonSchema({"anyOf": [_PATH_SCHEMA, {"type": "array", "items": _PATH_SCHEMA, "minItems": 1}]}),
]
"""One path or address, or a list of them; always a tuple once it is read."""

AnswerFormat = Literal["plain", "gsm8k", "boxed"]


class DataSource(Section):
    """One of several sources of prompts. A setting that is null takes the value of the same name in data or rewards."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the source, in metrics and messages."""
    path: Paths
    """Files of prompts, as in data.path."""
    weight: StrictFloat = Field(1.0, gt=0, le=1e6)
    """Share of the prompts drawn from this source, relative to the other sources' weights. [weight]"""
    prompt_field: str | None = Field(None, min_length=1)
    """Key of the question; dots lead into nested values."""
    answer_field: str | None = Field(None, min_length=1)
    """Key of the answer; dots lead into nested values."""
    answer_format: AnswerFormat | None = None
    """What the answer's field holds, as in data.answer_format."""
    system_prompt: str | None = None
    """Message of the system before the question."""
    instruction: str | None = None
    """Text around the question, which stands at {prompt}."""
    verifier: str | None = Field(None, min_length=1)
    """Verifier of this source's responses, as in rewards.verifier."""
    verifier_arguments: dict[str, JsonValue] | None = None
    """Keyword arguments of that verifier; null for none, or rewards.arguments if verifier is null."""
    temperature: StrictFloat | None = Field(None, gt=0)
    """Temperature at which this source's prompts are sampled, as in rollout.temperature. [temperature]"""
    samples_per_prompt: StrictInt | None = Field(None, ge=2)
    """Responses to each prompt of this source, as in rollout.samples_per_prompt. [sequences]"""


class DataSection(Section):
    """Prompts."""

    path: Paths | None = None
    """Files of prompts: a file, a folder, an address such as s3://bucket/key, or hf:org/name of a data set on the Hub;
    or a list of them. Null where sources are given."""
    sources: tuple[DataSource, ...] = ()
    """Several sources in place of path, mixed by their weights."""
    prompt_field: str = Field("prompt", min_length=1)
    """Key of the question; dots lead into nested values."""
    answer_field: str = Field("answer", min_length=1)
    """Key of the data that the verifier needs to judge a response; dots lead into nested values."""
    answer_format: AnswerFormat = "plain"
    """What that field holds: the answer, a solution with #### before it, or one with the answer in \\boxed{}."""
    system_prompt: str | None = None
    """Message of the system before each question; needs a chat template."""
    instruction: str | None = None
    """Text around each question, which stands at {prompt}."""
    shuffle: bool = True
    """Draw prompts in a new random order in each epoch."""
    curriculum: CurriculumSection | None = None
    """Pass over prompts that are too easy or too hard by their running accuracy; null draws all."""
    chat_template: bool = True
    """Wrap each question in the tokenizer's chat template."""
    chat_template_kwargs: dict[str, JsonValue] = Field({})
    """Further values for the chat template, as in {enable_thinking: false}."""
    max_prompt_length: StrictInt = Field(2048, ge=1)
    """Longest prompt, with the chat template. [tokens]"""
    too_long: Literal["drop", "refuse"] = "drop"
    """Leave longer prompts out, and print how many; or refuse the data."""

    @model_validator(mode="after")
    def _has_prompts(self) -> DataSection:
        if (self.path is None) == (not self.sources):
            raise ValueError("give either path or sources.")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have the same name: rename one of {', '.join(names)}.")
        return self

    @model_validator(mode="after")
    def _texts_around_a_question_are_read(self) -> DataSection:
        sections: list[tuple[str, DataSection | DataSource]] = [("", self)]
        sections += [(f"sources[{place}].", source) for place, source in enumerate(self.sources)]
        for name, section in sections:
            if section.instruction is not None and "{prompt}" not in section.instruction:
                raise ValueError(f"{name}instruction has no {{prompt}}, where the question stands: write it in.")
            if section.system_prompt is not None and not self.chat_template:
                raise ValueError(
                    f"{name}system_prompt is set and chat_template is false, which knows no messages: write it into "
                    "instruction, or set chat_template to true."
                )
        return self

    @model_validator(mode="after")
    def _template_values_have_a_reader(self) -> DataSection:
        if self.chat_template_kwargs and not self.chat_template:
            raise ValueError(
                f"chat_template_kwargs sets {', '.join(self.chat_template_kwargs)} and chat_template is false, which "
                "does not read them: remove them, or set chat_template to true."
            )
        taken = sorted(self.chat_template_kwargs.keys() & _NOT_OF_TEMPLATES)
        if taken:
            raise ValueError(f"chat_template_kwargs sets {taken[0]}, which megacov decides itself: remove it.")
        return self

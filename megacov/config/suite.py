"""Settings of an evaluation suite: sets of problems, how their responses are sampled, and how they are scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StrictBool, StrictFloat, StrictInt, model_validator

from megacov.config.data import AnswerFormat
from megacov.config.section import Section
from megacov.config.verifier_time import too_slow

MAX_SAMPLES = 4096

Extraction = Literal["boxed", "gsm8k", "text"]
Ks = tuple[Annotated[StrictInt, Field(ge=1)], ...]


class EvaluationSet(Section):
    """One set of problems."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the set, in the report, in metrics and in messages."""
    path: Path
    """File of problems; a relative path is looked for in the data folder, then in the working folder."""
    prompt_field: str = Field("problem", min_length=1)
    """Key of the question; dots lead into nested values."""
    answer_field: str = Field("answer", min_length=1)
    """Key of the data that the verifier needs to judge a response; dots lead into nested values."""
    answer_format: AnswerFormat = "plain"
    """Content of that field: the answer, a solution with #### before it, or one with the answer in \\boxed{}."""
    system_prompt: str | None = None
    """Message of the system before each question; needs a chat template."""
    instruction: str | None = None
    """Text around each question, which stands at {prompt}."""
    chat_template: StrictBool = True
    """Wrap each question in the tokenizer's chat template."""
    chat_template_kwargs: dict[str, JsonValue] = Field({})
    """Further values for the chat template, as in {enable_thinking: false}."""
    max_prompt_length: StrictInt = Field(4096, ge=1)
    """Longest prompt; a longer one is an error, since a score without it would be another set's. [tokens]"""

    verifier: str = Field(min_length=1)
    """Function that judges a response, as in rewards.verifier."""
    verifier_arguments: dict[str, JsonValue] = Field({})
    """Keyword arguments of the verifier."""
    unreadable_answers: Literal["refuse", "keep"] = "refuse"
    """Answers that the verifier cannot read: refuse the file, or keep the problems and report their number."""
    right_from: StrictFloat = 1.0
    """Smallest reward of a response that counts as right in pass@k and maj@k. [reward]"""

    greedy: StrictBool = False
    """Take the most likely token each time; one response to a problem."""
    samples: StrictInt = Field(1, ge=1, le=MAX_SAMPLES)
    """Responses to each problem. [sequences]"""
    temperature: StrictFloat = Field(1.0, gt=0)
    """Sampling temperature; a greedy set does not use it. [ratio]"""
    top_p: StrictFloat = Field(1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with at least this probability. [fraction]"""
    max_response_length: StrictInt = Field(8192, ge=1)
    """Longest response; a response that the limit cut counts as wrong. [tokens]"""
    stop: tuple[str, ...] = ()
    """Texts that end a response, in addition to the end-of-sequence token."""

    pass_at: Ks = ()
    """Values of k for pass@k. [responses]"""
    maj_at: Ks = ()
    """Values of k for maj@k. [responses]"""
    extract: Extraction = "boxed"
    """Where maj@k finds the answer of a response: in the last \\boxed{}, after ####, or the whole text."""

    @model_validator(mode="after")
    def _numbers_of_samples_agree(self) -> EvaluationSet:
        if self.greedy and self.samples > 1:
            raise ValueError(
                f"greedy is true and samples is {self.samples}, which would be equal: set samples to 1, or greedy to "
                "false."
            )
        for name, ks in (("pass_at", self.pass_at), ("maj_at", self.maj_at)):
            if ks and max(ks) > self.samples:
                raise ValueError(
                    f"{name} holds {max(ks)} and samples is {self.samples}: k is at most the number of samples."
                )
            if len(set(ks)) < len(ks):
                raise ValueError(f"{name} holds a number twice: remove one.")
        return self

    @model_validator(mode="after")
    def _templates_have_a_reader(self) -> EvaluationSet:
        given = "system_prompt" if self.system_prompt is not None else "chat_template_kwargs"
        if not self.chat_template and (self.system_prompt is not None or self.chat_template_kwargs):
            raise ValueError(f"{given} is set and chat_template is false, which does not read it: remove one of them.")
        return self

    @property
    def sampling_temperature(self) -> float:
        """Temperature of a request: 0 asks for the most likely tokens."""
        return 0.0 if self.greedy else self.temperature


class SuiteSection(Section):
    """A suite: several sets, and the processes that judge their responses."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the suite, in the report."""
    sets: tuple[EvaluationSet, ...] = Field(min_length=1)
    """The sets, in the order of the report's columns."""
    workers: StrictInt = Field(4, ge=1, le=1024)
    """Processes that call each verifier. [processes]"""
    timeout_s: StrictFloat = Field(30.0, gt=0)
    """Longest time that a verifier may take for a response; a later verdict is a failure, which scores 0. [s]"""
    start_timeout_s: StrictFloat = Field(300.0, gt=0)
    """Longest time to import a verifier in a process. [s]"""

    @model_validator(mode="after")
    def _names_differ(self) -> SuiteSection:
        names = [each.name for each in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"two sets have the same name: rename one of {', '.join(names)}.")
        return self

    @model_validator(mode="after")
    def _verifiers_end_before_their_verdicts_are_due(self) -> SuiteSection:
        for each in self.sets:
            used = (f"the verifier of the set {each.name}", each.verifier, each.verifier_arguments)
            sentence = too_slow(*used, timeout_s=self.timeout_s, setting="timeout_s")
            if sentence is not None:
                raise ValueError(sentence)
        return self

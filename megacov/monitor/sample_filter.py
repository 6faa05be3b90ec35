"""Which of the responses in RUN/samples a reader wants to see."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from megacov.errors import ConfigError

if TYPE_CHECKING:
    from megacov.monitor.samples import ShownSample

VERIFIER_FAILURE = "verifier failure"
"""The word among the notable things of a response on which the verifier failed; all that older files say."""


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers from `low` to `high`, both included."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        low, high = ("" if math.isinf(bound) else f"{bound:.12g}" for bound in (self.low, self.high))
        return low if self.low == self.high else f"{low}:{high}"


def parse_span(text: str, name: str) -> Span:
    """Read "0:0.5", "0.5:", ":0.5" or "1".

    Args:
        text: numbers and a colon.
        name: what the text was given for, for the error.

    Returns:
        The range.

    Raises:
        ConfigError: it is not of this form, or its numbers are in the wrong order.
    """
    try:
        bounds = [float(part) if part.strip() else None for part in text.split(":")]
        if any(bound is not None and math.isnan(bound) for bound in bounds) or len(bounds) > 2 or bounds == [None]:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{name} is {text!r}: give a number, or a range such as 0:0.5, 0.5: or :0.5.") from None
    low = -math.inf if bounds[0] is None else bounds[0]
    high = math.inf if bounds[-1] is None else bounds[-1]
    if low > high:
        raise ConfigError(f"{name} is {text!r}, whose start {low:g} is above its end {high:g}: exchange them.")
    return Span(low, high)


@dataclass(frozen=True, slots=True)
class SampleFilter:
    """Conditions, all of which a response must meet; those at their defaults ask for nothing.

    step, reward, tokens: ranges of the step, of the reward, and of the length. [., ., tokens]
    truncated: the length limit cut it.
    failed: the verifier failed on it.
    source: name of its source of prompts.
    text: words in prompt or response, in any case.
    """

    step: Span | None = None
    reward: Span | None = None
    tokens: Span | None = None
    truncated: bool = False
    failed: bool = False
    source: str = ""
    text: str = ""

    def has_step(self, step: int) -> bool:
        """Whether responses of a step can pass."""
        return self.step is None or step in self.step

    def passes(self, sample: ShownSample) -> bool:
        """Whether a response meets all conditions."""
        return (
            self.has_step(sample.step)
            and (self.reward is None or sample.reward in self.reward)
            and (self.tokens is None or sample.num_tokens in self.tokens)
            and (not self.truncated or sample.finish_reason == "length")
            and (not self.failed or bool(sample.failure) or VERIFIER_FAILURE in sample.notable)
            and (not self.source or sample.source == self.source)
            and (not self.text or any(self.text.casefold() in t.casefold() for t in (sample.prompt, sample.response)))
        )

    def __str__(self) -> str:
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is True:
                words.append(field.name)
            elif value:
                words.append(f"{field.name}={value}")
        return " ".join(words)


def parse_filter(text: str) -> SampleFilter:
    """Read what `str` of a filter writes: words such as "reward=0:0.5 truncated source=gsm8k text=therefore".

    Args:
        text: conditions; `text=` takes the rest of the line.

    Returns:
        The filter.

    Raises:
        ConfigError: a word is not a condition, or its value does not fit.
    """
    before, has_text, words = re.fullmatch(r"(.*?)(?:(?<!\S)(text=)(.*))?", text, re.DOTALL).groups()  # type: ignore[union-attr]
    conditions: dict[str, Any] = {"text": words.strip() if has_text else ""}
    for word in before.split():
        name, has_value, value = word.partition("=")
        if name in ("step", "reward", "tokens") and has_value:
            conditions[name] = parse_span(value, name)
        elif name in ("truncated", "failed") and not has_value:
            conditions[name] = True
        elif name == "source" and value:
            conditions[name] = value
        else:
            raise ConfigError(
                f"{word!r} is not a condition: those are step=, reward=, tokens= with a number or a range such as "
                "0:0.5, truncated, failed, source= and text=."
            )
    return SampleFilter(**conditions)

"""The samples of a report: which responses of RUN/samples it holds, and sums over the tokens of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megacov.monitor.samples import ShownSample, TokenValues, read_samples


@dataclass(slots=True)
class TokenSums:
    """Sums over all tokens of one text. covariance, entropy: over those whose value is known. [nats]"""

    tokens: int = 0
    selected: int = 0
    covariance: float = 0.0
    entropy: float = 0.0


@dataclass(frozen=True, slots=True)
class Samples:
    """What a report shows of RUN/samples.

    shown: responses for the browser, in the order of steps and rows.
    num_samples, num_tokens: of all responses in the folder.
    num_with_values: those of the responses whose tokens have values.
    by_text: sums by token text, over all responses whose tokens have values.
    problems: a sentence for each thing that could not be read.
    """

    shown: tuple[ShownSample, ...]
    num_samples: int
    num_tokens: int
    num_with_values: int
    by_text: dict[str, TokenSums]
    problems: tuple[str, ...]


@dataclass(slots=True)
class _Counts:
    """What the first reading finds."""

    samples: int = 0
    with_values: int = 0
    tokens_by_step: dict[int, int] = field(default_factory=dict)
    by_text: dict[str, TokenSums] = field(default_factory=dict)

    def add(self, sample: ShownSample) -> None:
        self.samples += 1
        self.tokens_by_step[sample.step] = self.tokens_by_step.get(sample.step, 0) + length_of(sample)
        if sample.tokens is not None:
            self.with_values += 1
            _add_tokens(self.by_text, sample.tokens)


def gather_samples(run: Path, *, max_tokens: int) -> Samples:
    """Read RUN/samples twice: to count everything, then to keep the responses of as many steps as there is room for.

    The steps that are kept are equally spaced, the first and the last among them. Memory holds those responses, and one
    entry for each different token.

    Args:
        run: run folder.
        max_tokens: tokens of the responses that are kept, at most. A single step that is larger is cut short, but keeps
            one response.

    Returns:
        The samples; none of them if the run has no folder of samples.
    """
    counts = _Counts()
    problems: list[str] = []
    for sample in read_samples(run, on_problem=problems.append):
        counts.add(sample)
    steps = choose_steps(counts.tokens_by_step, max_tokens=max_tokens)
    shown: list[ShownSample] = []
    room = max_tokens
    for sample in read_samples(run, steps) if steps else ():
        room -= length_of(sample)
        if room < 0 and shown:
            break
        shown.append(sample)
    return Samples(
        shown=tuple(shown),
        num_samples=counts.samples,
        num_tokens=sum(counts.tokens_by_step.values()),
        num_with_values=counts.with_values,
        by_text=counts.by_text,
        problems=tuple(problems),
    )


def choose_steps(tokens_by_step: dict[int, int], *, max_tokens: int) -> tuple[int, ...]:
    """As many equally spaced steps as have room, from the first to the last; the last alone if no two have.

    Args:
        tokens_by_step: tokens of each step, in rising order of the steps.
        max_tokens: tokens of the chosen steps, at most; the last step is chosen whatever its size.

    Returns:
        Steps in rising order; empty if there are none.
    """
    steps, tokens = list(tokens_by_step), np.array(list(tokens_by_step.values()), dtype=np.int64)
    for amount in range(len(steps), 1, -1):
        places = np.linspace(0, len(steps) - 1, amount).round().astype(int)
        if tokens[places].sum() <= max_tokens:
            return tuple(steps[place] for place in places)
    return tuple(steps[-1:])


def length_of(sample: ShownSample) -> int:
    """Tokens of a response, as its file states them; where it states none, at least those that it lists."""
    return max(sample.num_tokens, len(sample.tokens.texts) if sample.tokens is not None else 0)


def most_selected(by_text: dict[str, TokenSums], *, most: int) -> list[tuple[str, TokenSums]]:
    """Token texts that were selected most often, with their sums."""
    found = [(text, sums) for text, sums in by_text.items() if sums.selected]
    return _first(found, [-sums.selected for _, sums in found], most)


def most_entropy_lost(by_text: dict[str, TokenSums], *, most: int) -> list[tuple[str, TokenSums]]:
    """Token texts with the largest sums of covariance, those above 0 only."""
    found = [(text, sums) for text, sums in by_text.items() if sums.covariance > 0]
    return _first(found, [-sums.covariance for _, sums in found], most)


def _first(found: Sequence[tuple[str, TokenSums]], keys: Sequence[float], most: int) -> list[tuple[str, TokenSums]]:
    order = sorted(range(len(found)), key=lambda place: (keys[place], found[place][0]))
    return [found[place] for place in order[:most]]


def _add_tokens(by_text: dict[str, TokenSums], tokens: TokenValues) -> None:
    values = zip(
        tokens.texts, tokens.selected.tolist(), tokens.covariance.tolist(), tokens.entropy.tolist(), strict=True
    )
    for text, is_selected, covariance, entropy in values:
        sums = by_text.get(text)
        if sums is None:
            sums = by_text[text] = TokenSums()
        sums.tokens += 1
        sums.selected += is_selected
        sums.covariance += 0.0 if math.isnan(covariance) else covariance
        sums.entropy += 0.0 if math.isnan(entropy) else entropy

"""RUN/samples: a few responses of each step, with the values of their tokens, for people and for viewers.

`samples/step_000012.jsonl` has one JSON object a response. Reading it needs no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacov.json_text import MAX_JSON_BYTES, JsonError, parse_json

FOLDER_NAME = "samples"
TEXTS = "token_texts"
FLOATS = ("log_probs", "entropy", "covariance", "mismatch")
FLAGS = ("selected", "kept")
TOKEN_FIELDS = (TEXTS, *FLOATS, *FLAGS)
"""Keys of lists with one entry a token of the response."""

_NAME = re.compile(r"step_(\d{6,})\.jsonl")


@dataclass(frozen=True, slots=True, eq=False)
class TokenValues:
    """The tokens of one response, all [length], under the policy before the step's first optimizer step.

    A number is NaN where it is not finite or has no meaning, as the covariance of a token that is not kept.

    texts: what each token adds to the text. A character that several tokens share stands at the last of them.
    log_probs: the trainer's, at the rollout temperature. [nats]
    entropy: over the whole vocabulary, at the rollout temperature. [nats]
    covariance: of log-prob and advantage, about the means of the rollout batch. [nats]
    mismatch: log-prob of the server that sampled the token, minus the trainer's. [nats]
    selected: tokens that the covariance method acted on, in an optimizer step that was applied.
    kept: tokens that took part in the loss.
    """

    texts: tuple[str, ...]
    log_probs: NDArray[np.float64]
    entropy: NDArray[np.float64]
    covariance: NDArray[np.float64]
    mismatch: NDArray[np.float64]
    selected: NDArray[np.bool_]
    kept: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class ShownSample:
    """One response of a step.

    step: the step that trained on it, from 1.
    sample: its row in the rollout batch, from 0; None in a file of an older megacov.
    answer: what the verifier judged against.
    reward: the verifier's, without the penalty for length.
    notable: why it was chosen, such as "longest"; often empty.
    num_tokens: tokens of the response.
    finish_reason: "stop", "length" or "abort"; empty if the file has none.
    failure: how the verifier failed on it, such as "timeout"; empty if it did not, and in a file of an older megacov.
    source: name of its source of prompts; empty if the run has only one.
    versions: of the weights that sampled it, first to last.
    staleness: version of the weights in training minus the oldest of these.
    tokens: None where the file holds texts alone.
    """

    step: int
    sample: int | None
    prompt: str
    response: str
    answer: str
    reward: float
    notable: tuple[str, ...]
    num_tokens: int
    finish_reason: str
    failure: str
    source: str
    versions: tuple[str, ...]
    staleness: int
    tokens: TokenValues | None


def sample_file(run: Path, step: int) -> Path:
    """File of a step's responses."""
    return run / FOLDER_NAME / f"step_{step:06d}.jsonl"


def sample_files(run: Path) -> dict[int, Path]:
    """Files of samples by step, in order; empty if the run has none.

    Args:
        run: run folder.

    Returns:
        Path by step, from the lowest to the highest.

    Raises:
        OSError: the folder exists and cannot be listed.
    """
    folder = run / FOLDER_NAME
    if not folder.is_dir():
        return {}
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(name[1]), path) for name, path in found if name is not None))


def read_samples(
    run: Path, steps: Collection[int] | None = None, *, on_problem: Callable[[str], object] = lambda sentence: None
) -> Iterator[ShownSample]:
    """Read responses, step by step, one at a time. Lines that cannot be read are named and passed over.

    Args:
        run: run folder.
        steps: steps to read, those without a file passed over; None for all. Only None lists the folder.
        on_problem: called with a sentence for each line or file that cannot be read, and at the end with one that
            counts the responses whose file holds texts alone.

    Yields:
        The responses of a step in the order of the rollout batch.
    """
    num_without, first_without = 0, 0
    try:
        wanted = sample_files(run) if steps is None else sorted(set(steps))
    except OSError as error:
        on_problem(f"{run / FOLDER_NAME} cannot be listed: {error.strerror}.")
        return
    for step in wanted:
        path = sample_file(run, step)
        if steps is not None and not path.exists():
            continue
        for sample in _read_file(path, step, on_problem):
            if sample.tokens is None:
                first_without = first_without if num_without else step
                num_without += 1
            yield sample
    if num_without:
        on_problem(f"{num_without} responses, the first in step {first_without}, have no values of their tokens.")


def _read_file(path: Path, step: int, on_problem: Callable[[str], object]) -> Iterator[ShownSample]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_JSON_BYTES + 1), b""), start=1):
                try:
                    yield _to_sample(parse_json(line), step, lambda why: on_problem(f"{path}, line {number}: {why}."))  # noqa: B023 - called at once
                except JsonError as error:
                    on_problem(f"{path}, line {number} cannot be read: {error}.")
    except OSError as error:
        on_problem(f"{path} cannot be read: {error.strerror}.")


def _to_sample(line: Any, step: int, on_problem: Callable[[str], object]) -> ShownSample:
    if not isinstance(line, dict):
        raise JsonError("it is no JSON object")

    def get(name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        value = line.get(name, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise JsonError(f"its {name} is {str(value)[:40]!r}")
        return value

    return ShownSample(
        step=step,
        sample=get("sample", (int, type(None)), None),
        prompt=get("prompt", str, None),
        response=get("response", str, None),
        answer=get("answer", str, ""),
        reward=float(get("reward", (int, float), None)),
        notable=tuple(map(str, get("notable", list, []))),
        num_tokens=get("tokens", int, 0),
        finish_reason=get("finish_reason", str, ""),
        failure=get("failure", str, ""),
        source=get("source", str, ""),
        versions=tuple(map(str, get("versions", list, []))),
        staleness=get("staleness", int, 0),
        tokens=_to_tokens(line, on_problem),
    )


def _to_tokens(line: dict[str, Any], on_problem: Callable[[str], object]) -> TokenValues | None:
    """The values of the tokens, or None where there are none or where they do not fit together."""
    lists = {name: line[name] for name in TOKEN_FIELDS if isinstance(line.get(name), list)}
    if not lists:
        return None
    if len(lists) < len(TOKEN_FIELDS) or len(set(map(len, lists.values()))) > 1:
        on_problem(f"the values of its tokens are left out: there are {_lengths(lists)}")
        return None
    if not all(isinstance(text, str) for text in lists[TEXTS]):
        on_problem(f"the values of its tokens are left out: {TEXTS} holds something that is no text")
        return None
    if not all(value is None or type(value) in (int, float) for name in FLOATS + FLAGS for value in lists[name]):
        on_problem("the values of its tokens are left out: one is no number")
        return None
    return TokenValues(
        texts=tuple(lists[TEXTS]),
        log_probs=_floats(lists["log_probs"]),
        entropy=_floats(lists["entropy"]),
        covariance=_floats(lists["covariance"]),
        mismatch=_floats(lists["mismatch"]),
        selected=_floats(lists["selected"]) == 1,
        kept=_floats(lists["kept"]) == 1,
    )


def _floats(values: list[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _lengths(lists: dict[str, list[Any]]) -> str:
    return ", ".join(f"{len(lists[name]) if name in lists else 'no'} {name}" for name in TOKEN_FIELDS)

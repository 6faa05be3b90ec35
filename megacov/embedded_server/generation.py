"""A request and its completions, as the engine sees them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from megacov.embedded_server.sampling import SamplingParams

DecodeTokens = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a completion ended. `matched`: stop token or stop string. `message`: reason of an abort."""

    kind: Literal["stop", "length", "abort"]
    matched: int | str | None = None
    message: str = "Aborted"
    status_code: int | None = None


@dataclass(eq=False, slots=True)
class Generation:
    """One completion in progress.

    draw_uniform: gives one number in [0, 1) for each token drawn.
    spans: pairs of weight version and index of its first token; one more begins when the weights change.
    """

    request: EngineRequest
    draw_uniform: Callable[[], float]
    output_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    spans: list[tuple[str, int]] = field(default_factory=list)
    finish: Finish | None = None
    num_retractions: int = 0

    def append(self, token: int, log_prob: float, *, weight_version: str) -> None:
        """Append a sampled token with its log-prob and the version of the weights that produced it."""
        self.mark_version(weight_version)
        self.output_ids.append(token)
        self.log_probs.append(log_prob)

    def mark_version(self, weight_version: str) -> None:
        """Begin a span if the weights of the next token are not those of the last one."""
        if not self.spans or self.spans[-1][0] != weight_version:
            self.spans.append((weight_version, len(self.output_ids)))


@dataclass(eq=False, slots=True)
class EngineRequest:
    """One prompt with n completions.

    stop_ids: token ids that end a completion, the model's and the request's.
    on_done: called once by the engine, when all completions have ended.
    num_unfinished: number of completions that have not ended; the engine counts it down.
    """

    rid: str
    prompt_ids: list[int]
    params: SamplingParams
    stop_ids: frozenset[int]
    on_done: Callable[[EngineRequest], None]
    wants_log_probs: bool = False
    wants_input_log_probs: bool = False
    input_log_probs: list[float] | None = None
    generations: list[Generation] = field(default_factory=list)
    num_unfinished: int = 0
    created_s: float = field(default_factory=time.monotonic)

    def start(self, shared_uniform: Callable[[], float]) -> None:
        """Make the n generations. With a seed, each copy has its own stream of random numbers.

        Args:
            shared_uniform: the server's random numbers, for requests without a seed.
        """
        seed = self.params.sampling_seed
        for copy in range(self.params.n):
            draw_uniform = shared_uniform if seed is None else random.Random(f"{seed}/{copy}").random
            self.generations.append(Generation(self, draw_uniform))
        self.num_unfinished = len(self.generations)

    @property
    def is_done(self) -> bool:
        """Whether every completion has ended."""
        return self.num_unfinished == 0


def find_finish(generation: Generation, *, decode: DecodeTokens) -> Finish | None:
    """Check whether the newest token ends the completion. The length is checked first, as in SGLang.

    Args:
        generation: completion with at least one token.
        decode: turns token ids into text with special tokens.

    Returns:
        Why the completion ends, or None.
    """
    request = generation.request
    params = request.params
    if len(generation.output_ids) >= params.max_new_tokens:
        return Finish("length")
    token = generation.output_ids[-1]
    if token in request.stop_ids:
        return Finish("stop", matched=token)
    if params.stop:
        # Every token is at least one byte, so this many tokens contain any stop string that the newest one completes.
        tail_length = max(len(stop.encode()) for stop in params.stop)
        tail = decode(generation.output_ids[-tail_length:])
        matched = next((stop for stop in params.stop if stop in tail), None)
        if matched is not None:
            return Finish("stop", matched=matched)
    return None

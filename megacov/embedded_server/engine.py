"""The scheduler of the embedded server: waiting and running generations, pauses and new weights.

Everything here runs on one thread. `step` makes at most one token for each running generation; all other methods act
between two tokens.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megacov.embedded_server.batch import RunningBatch, prefill, prompt_rows, shares_row
from megacov.embedded_server.bodies import PauseMode
from megacov.embedded_server.generation import DecodeTokens, EngineRequest, Finish, Generation, find_finish
from megacov.embedded_server.sampling import draw
from megacov.embedded_server.weights import WeightsDoNotFitError, WeightUpdate, load_weights

# Errors that torch, transformers and the tokenizer raise on a value that they cannot take. The engine survives these;
# its own mistakes (AssertionError) end it.
FAULTS_OF_A_REQUEST = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
_MAX_PREFILL_TOKENS = 16384  # with padding; bounds the activations of one forward pass


class Engine:
    """Generates for any number of requests in one batch, which they join and leave between two tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        decode: DecodeTokens,
        *,
        model_path: Path,
        max_running_sequences: int,
        random_seed: int,
        deterministic: bool = False,
    ) -> None:
        """Set up an idle engine.

        Args:
            model: causal language model on the CPU, in eval mode; only the engine may use it from now on.
            decode: turns token ids into text with special tokens, to find stop strings.
            model_path: folder of the weights.
            max_running_sequences: largest number of completions that hold keys and values at a time.
            random_seed: seed of the random numbers for requests without their own seed.
            deterministic: run one request at a time, so that rounding does not depend on other requests. A request with
                a seed then always has the same tokens and log-probs, bit by bit.
        """
        self.weight_version = "default"
        self.model_path = model_path
        self.max_running_sequences = max_running_sequences
        self._model = model
        self._decode = decode
        self._deterministic = deterministic
        self._random = random.Random(random_seed)
        self._requests: dict[str, EngineRequest] = {}
        self._waiting: deque[Generation] = deque()
        self._running: RunningBatch | None = None
        self._paused: PauseMode | None = None
        self._updates: deque[WeightUpdate] = deque()
        self._behind_update: list[EngineRequest] = []
        # Requests of which one made the engine fail: until they have ended, requests run one at a time.
        self._suspects: set[str] = set()

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return self._paused is None and bool(self._running or self._waiting or self._updates)

    @property
    def is_collecting(self) -> bool:
        """Whether requests wait and nothing runs, so that a short delay makes a larger first batch."""
        is_idle = self._paused is None and self._running is None and not self._deterministic
        return is_idle and 0 < len(self._waiting) < self.max_running_sequences

    def submit(self, request: EngineRequest) -> None:
        """Queue a new request with an unused id, behind any pending update of the weights."""
        request.start(self._random.random)
        self._requests[request.rid] = request
        if self._updates:
            self._behind_update.append(request)
        else:
            self._waiting.extend(request.generations)

    def abort(self, rid: str | None) -> None:
        """End requests at once, with the tokens they have.

        Args:
            rid: request id, or None for all requests; an unknown id does nothing.
        """
        requests = list(self._requests.values()) if rid is None else [self._requests.get(rid)]
        for request in requests:
            if request is not None:
                self._end(request, Finish("abort"))
        self._forget_finished()
        self._drop_finished()

    def _end(self, request: EngineRequest, finish: Finish) -> None:
        for generation in request.generations:
            if generation.finish is None:
                self._finish(generation, finish)

    def _forget_finished(self) -> None:
        self._waiting = deque(generation for generation in self._waiting if generation.finish is None)
        self._behind_update = [request for request in self._behind_update if not request.is_done]

    def pause(self, mode: PauseMode) -> None:
        """Make no further token until `resume`; new requests wait.

        Args:
            mode: abort ends all requests; retract drops their keys and values, which are recomputed after the pause;
                in_place keeps them.
        """
        if mode == "abort":
            self.abort(None)
        elif mode == "retract" and self._running is not None:
            for generation in reversed(self._running.generations):
                generation.num_retractions += 1
                self._waiting.appendleft(generation)
            self._running = None
        self._paused = mode
        self._apply_updates()

    def resume(self) -> None:
        """Resume generation after a pause."""
        self._paused = None

    def flush_cache(self) -> bool:
        """Drop cached prefixes. There are none, so this only returns whether SGLang could have dropped them."""
        return self._running is None and (self._paused is not None or not self._waiting)

    def update_weights(self, update: WeightUpdate) -> None:
        """Load weights: at once if nothing runs or the engine is paused, else after all requests queued so far."""
        self._updates.append(update)
        if self._paused is not None or not (self._running or self._waiting):
            self._apply_updates()

    def rename_weights(self, version: str) -> None:
        """Give the loaded weights another version, which the next token gets."""
        self.weight_version = version

    def step(self) -> None:
        """Let waiting generations join, and make one token for every one that runs."""
        if self._paused is not None:
            return
        joining = self._take_waiting()
        # Decode before prefill, so that every generation gets at most one token a step.
        if self._running is not None:
            self._advance_running(self._running)
        if joining:
            self._join(joining)
        if self._updates and not (self._running or self._waiting):
            self._apply_updates()

    def _advance_running(self, running: RunningBatch) -> None:
        try:
            self._append_tokens(running, running.decode(self._model))
            self._drop_finished()
        except FAULTS_OF_A_REQUEST as error:
            self._running = None  # its cache may hold some layers of a token
            self._set_apart(running.generations, error)

    def _set_apart(self, generations: Sequence[Generation], error: Exception) -> None:
        """Answer the request that made the engine fail; if it may be one of several, have each run alone from now on.

        Args:
            generations: generations of the failed forward pass, without their caches.
            error: the failure.
        """
        unfinished = [generation for generation in generations if generation.finish is None]
        requests = {id(generation.request): generation.request for generation in unfinished}
        if len(requests) > 1:
            self._suspects |= {request.rid for request in requests.values()}
            for generation in reversed(unfinished):
                generation.num_retractions += bool(generation.output_ids)
                self._waiting.appendleft(generation)
            return
        for request in requests.values():
            reason = f"The engine failed on this request: {type(error).__name__}: {str(error)[:500]}"
            print(f"megacov: request {request.rid[:80]}: {reason}", flush=True)
            self._end(request, Finish("abort", message=reason, status_code=500))
        self._forget_finished()

    def _take_waiting(self) -> list[Generation]:
        if self._deterministic or self._suspects:
            return self._take_next_request()
        room = self.max_running_sequences - (len(self._running.generations) if self._running else 0)
        taken: list[Generation] = []
        num_rows = width = 0
        while self._waiting and len(taken) < room:
            generation = self._waiting[0]
            num_rows += not (taken and shares_row(taken[-1], generation))
            width = max(width, len(generation.request.prompt_ids) + len(generation.output_ids))
            if taken and num_rows * width > _MAX_PREFILL_TOKENS:
                break
            taken.append(self._waiting.popleft())
        return taken

    def _take_next_request(self) -> list[Generation]:
        taken: list[Generation] = []
        while self._running is None and self._waiting and (not taken or taken[0].request is self._waiting[0].request):
            taken.append(self._waiting.popleft())
        return taken

    def _join(self, joining: list[Generation]) -> None:
        try:
            batch, logits = prefill(self._model, prompt_rows(joining))
            self._append_tokens(batch, logits)
            rows = [row for row, generation in enumerate(batch.generations) if generation.finish is None]
            if not rows:
                return
            batch.keep(rows)
        except FAULTS_OF_A_REQUEST as error:
            self._set_apart(joining, error)
            return
        if self._running is None:
            self._running = batch
        else:
            self._running.extend(batch)

    def _append_tokens(self, batch: RunningBatch, logits: Tensor) -> None:
        greedy = batch.plan.greedy.tolist()
        uniforms = [
            0.0 if is_greedy else generation.draw_uniform()
            for is_greedy, generation in zip(greedy, batch.generations, strict=True)
        ]
        tokens, log_probs = draw(logits, batch.plan, torch.tensor(uniforms, dtype=torch.float64))
        for generation, token, log_prob in zip(batch.generations, tokens.tolist(), log_probs.tolist(), strict=True):
            finish = self._advance(generation, token, log_prob)
            if finish is not None:
                self._finish(generation, finish)

    def _advance(self, generation: Generation, token: int, log_prob: float) -> Finish | None:
        if generation.request.params.max_new_tokens == 0:
            return Finish("length")
        if math.isnan(log_prob):
            message = f"The model's logits are not finite under weight version {self.weight_version}."
            return Finish("abort", message=message, status_code=500)
        generation.append(token, log_prob, weight_version=self.weight_version)
        return find_finish(generation, decode=self._decode)

    def _finish(self, generation: Generation, finish: Finish) -> None:
        if not generation.spans:
            generation.mark_version(self.weight_version)
        generation.finish = finish
        request = generation.request
        request.num_unfinished -= 1
        if request.is_done:
            del self._requests[request.rid]
            self._suspects.discard(request.rid)
            request.on_done(request)

    def _drop_finished(self) -> None:
        if self._running is None:
            return
        rows = [row for row, generation in enumerate(self._running.generations) if generation.finish is None]
        if rows:
            self._running.keep(rows)
        else:
            self._running = None

    def _apply_updates(self) -> None:
        while self._updates:
            self._apply(self._updates.popleft())
        self._waiting.extend(_generations_of(self._behind_update))
        self._behind_update.clear()

    def _apply(self, update: WeightUpdate) -> None:
        if update.flushes_cache and self._running is not None:
            update.on_done(False, "Requests paused in place keep their cache, so send flush_cache=false.")
            return
        try:
            load_weights(self._model, update.folder)
        except WeightsDoNotFitError as error:
            update.on_done(False, str(error))
            return
        self.model_path = update.folder
        message = "Succeeded to update model weights."
        if update.version is not None:
            self.weight_version = update.version
            message += f" Weight version updated to {update.version}."
        update.on_done(True, message)


def _generations_of(requests: Iterable[EngineRequest]) -> list[Generation]:
    return [generation for request in requests for generation in request.generations]

"""Samples on a fleet beside rollout batches: completions that are aborted are continued, never sampled anew."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import replace

from megacov.rollout.client.wire import GenerateRequest, Prefix
from megacov.rollout.fleet.fleet import Fleet, ServersWaitError
from megacov.rollout.sampling.carried import NOT_BEGUN, DecodeTokens, join, unchecked_token_dropped
from megacov.rollout.sampling.partial import abort_everything
from megacov.rollout.tasks import gather_all
from megacov.types import Completion

_PAUSE_S = 0.5  # until an aborted completion goes on: whoever ends a rollout batch aborts again and again
_ABORT_AGAIN_S = 0.2
_ABORT_TIMEOUT_S = 30.0
_MAX_SEED = 2**31


class ContinuedClient:
    """Samples whole completions, whoever aborts them meanwhile. Use it within the fleet's event loop.

    The end of an over-sampled or partial rollout batch aborts all requests of its servers, and so does `set_aside`.
    Long completions are aborted more often than short ones, so sampling those anew would favour the short ones. An
    aborted completion goes on from its tokens instead, and its version spans show what sampled each of them.
    """

    def __init__(self, fleet: Fleet, *, decode: DecodeTokens, max_concurrency: int) -> None:
        """Send nothing before `resume`.

        Args:
            fleet: servers, with counts of its own.
            decode: turns token ids into text without special tokens, as the servers do.
            max_concurrency: largest number of requests in flight.
        """
        self._fleet, self._decode = fleet, decode
        self._slots = asyncio.Semaphore(max_concurrency)
        self._may_send = asyncio.Event()
        self._calls: set[asyncio.Task[list[Completion]]] = set()

    @property
    def num_calls(self) -> int:
        """Requests under way."""
        return sum(not call.done() for call in self._calls)

    @property
    def is_set_aside(self) -> bool:
        """Whether nothing is sent before `resume`; also so when all servers that are left need a push."""
        return not self._may_send.is_set()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Sample n completions of one prompt, all of them to their end, however long that takes.

        Args:
            request: the prompt and how to complete it. Its seed decides the tokens unless a completion is aborted.

        Returns:
            n completions, none of which ends in "abort".

        Raises:
            DataError: the prompt has a token outside the vocabulary.
            RolloutError: a server refused the request, or no server answered it.
        """
        pieces, attempt = [NOT_BEGUN] * request.n, 0
        prefix = request.prefix or Prefix()
        while unfinished := [copy for copy, piece in enumerate(pieces) if piece.finish_reason == "abort"]:
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            fresh = [copy for copy in unfinished if not pieces[copy].token_ids]
            begun = [[copy] for copy in unfinished if pieces[copy].token_ids]
            together = [*([fresh] if fresh else []), *begun]
            await gather_all(self._extend(pieces, copies, request, prefix, attempt) for copies in together)
            attempt += 1
        return pieces

    async def resume(self) -> None:
        """Let requests be sent: all servers that serve have whole weights."""
        self._may_send.set()

    async def set_aside(self) -> None:
        """Have the servers answer all requests with the tokens they have, and send none until `resume`.

        It aborts whatever runs on these servers, so no rollout batch may be under way. A server that does not answer in
        time costs the tokens of that request alone.
        """
        self._may_send.clear()
        deadline = time.monotonic() + _ABORT_TIMEOUT_S
        while (running := {call for call in self._calls if not call.done()}) and time.monotonic() < deadline:
            await abort_everything([self._fleet])  # again: a request may have been on its way to a server
            await asyncio.wait(running, timeout=_ABORT_AGAIN_S)
        for call in running:
            call.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _extend(
        self, pieces: list[Completion], copies: list[int], request: GenerateRequest, prefix: Prefix, attempt: int
    ) -> None:
        """Sample on from equal pieces, in place; they stay as they are if that is given up."""
        piece, seed = pieces[copies[0]], request.sampling_seed
        if seed is not None and attempt:
            seed = _seed_of(seed, attempt, copies[0])
        wanted = replace(
            request,
            input_ids=request.input_ids + piece.token_ids,
            n=len(copies),
            max_new_tokens=request.max_new_tokens - len(piece.token_ids),
            sampling_seed=seed,
            prefix=prefix,
        )
        for copy, completion in zip(copies, await self._sent(wanted), strict=False):
            rest = unchecked_token_dropped(completion, decode=self._decode)
            pieces[copy] = join(piece, rest, decode=self._decode, stop=request.stop)

    async def _sent(self, request: GenerateRequest) -> list[Completion]:
        """The servers' answer; none if the request was given up."""
        async with self._slots:
            await self._may_send.wait()
            call = asyncio.ensure_future(self._fleet.generate(request))
            self._calls.add(call)
            try:
                # Unlike awaiting the call itself, this tells its cancellation from one of this coroutine.
                await asyncio.wait({call})
            finally:
                call.cancel()
                self._calls.discard(call)
        if call.cancelled():
            return []
        try:
            return call.result()
        except ServersWaitError:  # only the next push brings servers back
            self._may_send.clear()
            return []


def _seed_of(seed: int, attempt: int, copy: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{attempt}/{copy}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _MAX_SEED

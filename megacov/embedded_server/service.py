"""Between the HTTP routes and the engine: requests in progress, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from megacov.embedded_server.bodies import DiskUpdateBody, GenerateBody, PauseMode, invalid_value
from megacov.embedded_server.engine import Engine
from megacov.embedded_server.generation import EngineRequest
from megacov.embedded_server.model import ServedModel
from megacov.embedded_server.requests import build_requests, health_request, tokenize
from megacov.embedded_server.thread import EngineThread
from megacov.embedded_server.weights import WeightUpdate

_DISCONNECT_POLL_S = 1.0
_HEALTH_TIMEOUT_S = 20.0


class Service:
    """Passes calls from the event loop to the engine's thread. Use it from the event loop only."""

    def __init__(self, served: ServedModel, engine: Engine, thread: EngineThread) -> None:
        """Take the engine and its thread, which the caller starts and stops."""
        self.served = served
        self._engine = engine
        self._thread = thread
        self._rids: set[str] = set()

    @property
    def weight_version(self) -> str:
        """Version of the weights that make the next token."""
        return self._engine.weight_version

    @property
    def model_path(self) -> str:
        """Folder of the weights."""
        return str(self._engine.model_path)

    async def generate(self, body: GenerateBody, is_gone: Callable[[], Awaitable[bool]]) -> list[EngineRequest]:
        """Serve the prompts of a body, however long it takes. They are aborted if the client disconnects.

        Args:
            body: body of /generate.
            is_gone: returns whether the client has closed the connection.

        Returns:
            The finished requests in the order of the prompts; aborted ones if the client has disconnected.
        """
        countdown = _Countdown()
        if body.input_ids is None and body.text is not None:
            # Long texts take the tokenizer seconds, in which other clients must be answered.
            ids = await asyncio.to_thread(tokenize, body.text, self.served)
            body = body.model_copy(update={"input_ids": ids[0] if isinstance(body.text, str) else ids})
        requests = build_requests(body, self.served, on_done=countdown.count)
        for request in requests:
            if request.rid in self._rids:
                raise invalid_value(f"Duplicate request ID detected: {request.rid}")
        rids = {request.rid for request in requests}
        self._rids |= rids
        try:
            countdown.start(len(requests))
            for request in requests:
                self._thread.post(partial(self._engine.submit, request))
            while not await countdown.wait(_DISCONNECT_POLL_S):
                if await is_gone():
                    self._abort_each(rids)
        except asyncio.CancelledError:
            self._abort_each(rids)
            raise
        finally:
            self._rids -= rids
        return requests

    async def is_healthy(self) -> bool:
        """Whether the engine makes a token within 20 s. A paused one does not."""
        countdown = _Countdown()
        request = health_request(countdown.count)
        countdown.start(1)
        self._thread.post(partial(self._engine.submit, request))
        if not await countdown.wait(_HEALTH_TIMEOUT_S):
            self._abort_each([request.rid])
            return False
        finish = request.generations[0].finish
        return finish is not None and finish.kind != "abort"

    async def pause(self, mode: PauseMode) -> None:
        """Stop between two tokens; `mode` decides what happens to running requests."""
        await self._thread.call(self._engine.pause, mode)

    async def resume(self) -> None:
        """Resume generation after a pause."""
        await self._thread.call(self._engine.resume)

    async def flush_cache(self) -> bool:
        """Drop the cache; returns False if running requests prevent it."""
        return await self._thread.call(self._engine.flush_cache)

    async def abort(self, rid: str | None) -> None:
        """End one request, or all if `rid` is None, with the tokens they have."""
        await self._thread.call(self._engine.abort, rid)

    async def update_weights(self, body: DiskUpdateBody) -> tuple[bool, str]:
        """Load weights from a folder, after all earlier requests; returns success and a sentence."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[tuple[bool, str]] = loop.create_future()

        def set_outcome(result: tuple[bool, str]) -> None:
            if not outcome.done():  # the waiting handler may have been cancelled
                outcome.set_result(result)

        def on_done(success: bool, message: str) -> None:
            loop.call_soon_threadsafe(set_outcome, (success, message))

        update = WeightUpdate(
            folder=Path(body.model_path),
            version=body.weight_version,
            flushes_cache=body.flush_cache,
            on_done=on_done,
        )
        if body.abort_all_requests:
            await self.abort(None)
        await self._thread.call(self._engine.update_weights, update)
        return await outcome

    async def set_version(self, version: str, *, aborts_requests: bool) -> None:
        """Rename the loaded weights, and first end all requests if `aborts_requests`."""
        if aborts_requests:
            await self.abort(None)
        await self._thread.call(self._engine.rename_weights, version)

    def _abort_each(self, rids: set[str] | list[str]) -> None:
        for rid in rids:
            self._thread.post(partial(self._engine.abort, rid))


class _Countdown:
    """Lets the event loop wait until the engine's thread has ended a number of requests."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._zero = asyncio.Event()
        self._remaining = 0

    def start(self, number: int) -> None:
        self._remaining = number

    def count(self, _request: EngineRequest) -> None:
        """Called on the engine's thread."""
        self._loop.call_soon_threadsafe(self._count)

    def _count(self) -> None:
        self._remaining -= 1
        if self._remaining == 0:
            self._zero.set()

    async def wait(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._zero.wait()
        except TimeoutError:
            return False

"""Run the engine on a thread of its own, and let the event loop talk to it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

import torch

from megacov.embedded_server.engine import Engine

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# A first batch waits until no request has come for the gap, so that requests sent together run together.
_COLLECT_GAP_S = 0.004
_COLLECT_CAP_S = 0.06


class EngineThread:
    """Owns the engine: everything that touches it runs here, between two tokens, in the order in which it was asked."""

    def __init__(self, engine: Engine, *, num_threads: int, on_death: Callable[[], None]) -> None:
        """Prepare the thread; `start` starts it.

        Args:
            engine: nobody else may call it from now on.
            num_threads: of torch, for one operation.
            on_death: called on the thread if it ends without having been stopped.
        """
        self._engine = engine
        self._num_threads = num_threads
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._has_died = False
        # A daemon, so that a forward pass that takes long cannot hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start to serve."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End all requests as aborted, then the thread.

        Args:
            timeout_s: seconds to wait for the token in the making.

        Returns:
            Whether it ran until now; False if it had died before.
        """
        self._inbox.put(self._end)
        self._thread.join(timeout_s)
        return not self._has_died

    def post(self, action: Callable[[], None]) -> None:
        """Run an action on the engine's thread, some time after this returns. Any thread may call this.

        Args:
            action: must not raise.
        """
        self._inbox.put(action)

    async def call(
        self,
        function: Callable[Parameters, Result],
        /,
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Run a function on the engine's thread and wait for its result.

        Args:
            function: a method of the engine.
            *args: for the function.
            **kwargs: for the function.

        Returns:
            What the function returns.
        """
        future: Future[Result] = Future()
        self._inbox.put(lambda: future.set_result(function(*args, **kwargs)))
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)  # OpenMP keeps this number per thread
        try:
            with torch.inference_mode():
                while not self._stopping:
                    self._handle_inbox()
                    self._engine.step()
        finally:
            if not self._stopping:
                self._has_died = True
                self._on_death()

    def _end(self) -> None:
        self._engine.abort(None)
        self._stopping = True

    def _handle_inbox(self) -> None:
        if not self._engine.has_work:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()
        deadline = time.monotonic() + _COLLECT_CAP_S
        while self._engine.is_collecting and time.monotonic() < deadline:
            try:
                self._inbox.get(timeout=_COLLECT_GAP_S)()
            except queue.Empty:
                return

"""A thread for the engine, and calls to it from the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

import torch

from megacov.embedded_server.engine import FAULTS_OF_A_REQUEST, Engine

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# An idle engine starts when no request has come for the gap, so that requests sent together run together.
_COLLECT_GAP_S = 0.004
_COLLECT_CAP_S = 0.06


class EngineThread:
    """Owns the engine: all calls to it run here, between two tokens, in the order in which they were posted."""

    def __init__(self, engine: Engine, *, num_threads: int, on_death: Callable[[], None]) -> None:
        """Prepare the thread; `start` starts it.

        Args:
            engine: engine that only this thread may call from now on.
            num_threads: threads of one torch operation.
            on_death: called on the thread if it ends without `stop`.
        """
        self._engine = engine
        self._num_threads = num_threads
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._has_died = False
        # A daemon, so that a long forward pass cannot delay the end of the process.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start to serve."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Abort all requests and end the thread.

        Args:
            timeout_s: longest wait for the token in progress. [s]

        Returns:
            False if the thread had died before.
        """
        self._inbox.put(self._end)
        self._thread.join(timeout_s)
        return not self._has_died

    def post(self, action: Callable[[], None]) -> None:
        """Run an action, which must not raise, on the engine's thread later. Any thread may call this."""
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
            function: method of the engine.
            *args: positional arguments of the function.
            **kwargs: keyword arguments of the function.

        Returns:
            The function's result, or what it raised.
        """
        future: Future[Result] = Future()

        def act() -> None:
            try:
                result = function(*args, **kwargs)
            except FAULTS_OF_A_REQUEST as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._inbox.put(act)
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

"""An event loop on a thread of its own, so that rank 0 can sample while it trains."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

Result = TypeVar("Result")

# Work that blocks the loop does not hold up the end of the process, since the thread is a daemon.
_CLOSE_TIMEOUT_S = 3.0


class LoopThread:
    """Runs coroutines while the owner's thread does something else. Signals stay with the main thread.

    The thread lives until `close`, because servers started on it may be children that end with the thread.
    """

    def __init__(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        # Each thread has its own current CUDA device.
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="rollout", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """Return itself; the thread already runs."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the thread."""
        self.close()

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start a coroutine and return at once with a future of its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result], *, timeout_s: float | None = None) -> Result:
        """Run a coroutine and wait for it. An exception from a signal handler ends the wait, but not the work.

        Args:
            work: coroutine for the loop's thread.
            timeout_s: deadline of the wait; None where the work has its own deadlines. [s]

        Returns:
            The coroutine's result.

        Raises:
            TimeoutError: the work took longer; it goes on.
        """
        return self.start(work).result(timeout_s)

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task of the loop, which may have ended. Signal handlers may call this: it takes no lock."""
        self._loop.call_soon_threadsafe(task.cancel)

    def cancel_all(self) -> bool:
        """Cancel all work and wait for its end; returns False if that takes too long."""
        try:
            self.run(_cancel_others(), timeout_s=_CLOSE_TIMEOUT_S)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """End all work and the thread. Safe to call again."""
        if self._loop.is_closed() or not self.cancel_all():
            return
        self._is_closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _serve(self) -> None:
        torch.set_num_threads(1)  # OpenMP keeps this number per thread
        if self._device is not None:
            torch.cuda.set_device(self._device)
        while not self._is_closing:
            # Work may raise SystemExit; the caller that waits for its result gets it if the loop continues.
            with contextlib.suppress(SystemExit):
                self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)

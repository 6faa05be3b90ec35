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

# A verifier that does not come back holds up the loop, but not the end of the process: the thread is a daemon.
_CLOSE_TIMEOUT_S = 3.0


class LoopThread:
    """Runs coroutines beside whatever the thread does that owns it. Signals stay with the main thread.

    The thread lives until `close`: servers that are started on it may be children that end with the thread.
    """

    def __init__(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        # CUDA has a current device for each thread.
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="rollout", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """Nothing to do: it runs."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the thread."""
        self.close()

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Begin something and come back at once.

        Args:
            work: what is done.

        Returns:
            Its result, when there is one.
        """
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result], *, timeout_s: float | None = None) -> Result:
        """Do something and wait for it. An exception that a signal raises meanwhile does not end the work.

        Args:
            work: what is done.
            timeout_s: of the wait; None where the work has deadlines of its own.

        Returns:
            Its result.

        Raises:
            TimeoutError: it took longer.
        """
        return self.start(work).result(timeout_s)

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task of the loop. For signal handlers too: it takes no lock.

        Args:
            task: it may have ended.
        """
        self._loop.call_soon_threadsafe(task.cancel)

    def cancel_all(self) -> bool:
        """End all work, and wait until it has ended.

        Returns:
            Whether it has, in good time.
        """
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
            # What a verifier may raise; whoever waits for the result gets it, if the loop goes on.
            with contextlib.suppress(SystemExit):
                self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)

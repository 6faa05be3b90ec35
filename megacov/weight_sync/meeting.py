"""Where ranks of the trainer meet those of servers, and work beside the event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where this process meets the servers.

    host: address of this machine that the servers reach.
    device: device of the messages: the GPU for NCCL, the CPU for gloo.
    """

    backend: Literal["gloo", "nccl"]
    host: str
    device: torch.device = field(repr=False)

    @classmethod
    def of_this_rank(cls, host: str) -> Meeting:
        """Use the backend of the trainer's own process group."""
        if dist.get_backend() == "nccl":
            return cls("nccl", host, torch.device("cuda", torch.cuda.current_device()))
        return cls("gloo", host, torch.device("cpu"))


def in_thread(function: Callable[[], Result]) -> asyncio.Future[Result]:
    """Call a function in a daemon thread: unlike asyncio's threads, it does not hold up the end of this process."""
    loop = asyncio.get_running_loop()
    outcome: concurrent.futures.Future[Result] = concurrent.futures.Future()

    def call() -> None:
        outcome.set_running_or_notify_cancel()  # if the waiter is cancelled, the function still runs to its end
        try:
            outcome.set_result(function())
        except Exception as error:  # noqa: BLE001 - raised where the future is awaited
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return asyncio.wrap_future(outcome, loop=loop)

"""What every transport of weights offers to the trainer."""

from __future__ import annotations

import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from megacov.errors import RolloutError, WeightSyncError
from megacov.rollout import RolloutClient

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

Verification = Literal["none", "version", "checksums"]
Phase = Literal["pause", "gather", "transfer", "load", "flush"]


@dataclass(slots=True)
class PushTimes:
    """What one push cost: seconds by phase, and bytes.

    pause_s: until no server generates.
    gather_s: in which shards were put together, on all ranks of the trainer.
    transfer_s: in which weights were written to the disk, or sent to the servers and taken by them.
    load_s: in which servers made of them what they compute with; by disk, in which they read them as well.
    flush_s: from there on until all servers went on: names of the weights, caches, checks.
    num_bytes: of all tensors; each is counted once, however many servers get it.
    """

    pause_s: float = 0.0
    gather_s: float = 0.0
    transfer_s: float = 0.0
    load_s: float = 0.0
    flush_s: float = 0.0
    num_bytes: int = 0

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Add the time inside to a phase.

        Args:
            name: of the phase.
        """
        started = time.perf_counter()
        yield
        attribute = f"{name}_s"
        setattr(self, attribute, getattr(self, attribute) + time.perf_counter() - started)

    def gathered(self, named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass tensors on, and count their bytes and the time that it takes to have each.

        Args:
            named_tensors: weights by name.

        Yields:
            The same.
        """
        source = iter(named_tensors)
        while True:
            with self.phase("gather"):
                found = next(source, None)
            if found is None:
                return
            self.num_bytes += found[1].nbytes
            yield found


class ServersFailedError(WeightSyncError):
    """New weights did not reach all servers; none generates until they have. `failures`: client -> reason."""

    def __init__(self, failures: Mapping[RolloutClient, RolloutError], why: str = "") -> None:
        """Say the first reason.

        Args:
            failures: client of the server -> what went wrong.
            why: what went wrong where no single server is known to be the cause.
        """
        self.failures = failures
        first = next(iter(failures.values()), why)
        super().__init__(f"New weights did not arrive whole, so the servers stay paused until they do: {first}")


class RunOnLoop(Protocol):
    """Runs a coroutine on the event loop of the clients, to its end."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T:
        """Run it and wait."""
        ...


class WeightTransport(Protocol):
    """A way for weights to reach all rollout servers.

    A push is a transaction: afterwards every server generates with the new weights, or it raised WeightSyncError and
    servers that might hold mixed weights stay paused until a later push succeeds.
    """

    def push(self, version: int, named_tensors: Iterable[tuple[str, Tensor]]) -> PushTimes:
        """Replace the weights of all servers. Called on the thread on which the tensors may be computed.

        Args:
            version: of the new weights; servers report it as its decimal string.
            named_tensors: every weight by its Hugging Face name; taken one by one, each when it is sent.

        Returns:
            What it cost.
        """
        ...

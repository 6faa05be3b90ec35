"""The interface of a weight transport, and the cost of a push."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from megacov.config import RunConfig
from megacov.errors import RolloutError, WeightSyncError
from megacov.rollout import RolloutClient

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

Phase = Literal["pause", "gather", "transfer", "load", "flush"]


@dataclass(slots=True)
class PushTimes:
    """The cost of one push: seconds by phase, and bytes.

    pause_s: until no server generates.
    gather_s: gathering shards, on all ranks of the trainer.
    transfer_s: writing weights to disk, or sending them until the servers have taken them.
    load_s: preparing them for inference on the servers; by disk, reading them as well.
    flush_s: from then until all servers have resumed: names of the weights, caches, checks.
    num_bytes: size of all tensors, each counted once however many servers get it.
    """

    pause_s: float = 0.0
    gather_s: float = 0.0
    transfer_s: float = 0.0
    load_s: float = 0.0
    flush_s: float = 0.0
    num_bytes: int = 0

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Add the time spent inside the context to a phase."""
        started = time.perf_counter()
        yield
        attribute = f"{name}_s"
        setattr(self, attribute, getattr(self, attribute) + time.perf_counter() - started)

    def gathered(self, named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass tensors through, counting their bytes and the time that the iterator takes for each.

        Args:
            named_tensors: weights by name.

        Yields:
            The same pairs.
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
    """New weights did not reach all servers; no server generates until they have. `failures`: client -> reason."""

    def __init__(self, failures: Mapping[RolloutClient, RolloutError], why: str = "") -> None:
        """Quote the first reason.

        Args:
            failures: client of a failed server -> reason.
            why: reason where no single server is known to be the cause.
        """
        self.failures = failures
        first = next(iter(failures.values()), why)
        super().__init__(f"New weights did not arrive whole, so the servers stay paused until they do: {first}")


class RunOnLoop(Protocol):
    """Runs a coroutine on the clients' event loop until it ends."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T:
        """Run it and wait."""
        ...


class WeightTransport(ABC):
    """A way for weights to reach all rollout servers; `megacov.config.transports` holds what each needs and can do.

    A push is a transaction: either every server generates with the new weights afterwards, or it raises
    WeightSyncError and servers that may hold mixed weights stay paused until a later push succeeds.
    """

    @classmethod
    @abstractmethod
    def from_config(
        cls, config: RunConfig, folder: Path, clients: Sequence[RolloutClient], *, run: RunOnLoop
    ) -> WeightTransport:
        """Make the transport; no server is asked yet.

        Args:
            config: the run's configuration.
            folder: run folder.
            clients: one client per server; each push goes to the clients in the list at that time.
            run: runs the clients' coroutines.

        Returns:
            The transport.
        """

    @abstractmethod
    def push(self, version: int, named_tensors: Iterable[tuple[str, Tensor]], *, label: str | None = None) -> PushTimes:
        """Replace the weights of all servers. Call it on the thread on which the tensors may be computed.

        Args:
            version: version of the new weights.
            named_tensors: every weight by its Hugging Face name; each is taken when it is sent.
            label: name by which servers report the weights; None for the version in decimal.

        Returns:
            The cost of the push.

        Raises:
            WeightSyncError: the weights cannot be sent.
            ServersFailedError: the weights are not whole on every server. No server resumes then: all that could be
                reached stay paused, and a later push starts from the beginning.
        """

    async def bring_up_to_date(self, client: RolloutClient) -> None:
        """Give one server the weights of the last push, and resume it. Only transports that keep a copy can.

        Args:
            client: client of a server that was lost, or that was added since the last push.

        Raises:
            NotImplementedError: the transport keeps no copy.
            RolloutError: the server did not take the weights.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no copy of the weights")

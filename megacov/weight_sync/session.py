"""Weights as tensors, bucket by bucket: what is the same whichever way the buckets go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from megacov.config.transports import PauseMode
from megacov.errors import RolloutError
from megacov.rollout import RolloutClient
from megacov.weight_sync.base import PushTimes, RunOnLoop, ServersFailedError, Verification
from megacov.weight_sync.buckets import in_buckets
from megacov.weight_sync.servers import on_every_server, verify_servers

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How tensors are handed over.

    bucket_bytes: of one message, unless one tensor alone is larger; either side holds one or two of them beside the
        weights. [bytes]
    timeout_s: of one message, and of any other call to a server. [s]
    pause_mode: what becomes of requests under way.
    verify: what is checked before servers go on.
    """

    bucket_bytes: int = 1 << 29
    timeout_s: float = 300.0
    pause_mode: PauseMode = "retract"
    verify: Verification = "version"


class SessionTransport(ABC):
    """A `WeightTransport` without a copy of the weights beside those of the trainer and the servers.

    So a server that was lost waits for the next push.
    """

    def __init__(self, clients: Sequence[RolloutClient], *, run: RunOnLoop, settings: SessionSettings) -> None:
        """Set up; nobody is asked yet.

        Args:
            clients: one per server; each push goes to those that are in it then.
            run: runs what the clients do.
            settings: how tensors are handed over.
        """
        self._clients, self._run, self._settings = clients, run, settings

    def push(self, version: int, named_tensors: Iterable[tuple[str, Tensor]]) -> PushTimes:
        """Hand the weights over while the servers are paused.

        Args:
            version: of the new weights.
            named_tensors: every weight by its Hugging Face name; one bucket of them is held at a time.

        Returns:
            What it cost.

        Raises:
            ServersFailedError: the weights are not whole on every server. No server goes on then: all that could be
                reached stay paused, and a later push starts from the beginning.
        """
        times = PushTimes()
        if not self._clients:
            return times
        self._run(self._prepare())
        try:
            self._run(self._open(times))
            for bucket in in_buckets(times.gathered(named_tensors), max_bytes=self._settings.bucket_bytes):
                with times.phase("transfer"):
                    self._run(self._send(bucket))
            self._run(self._close(str(version), times))
        except ServersFailedError as error:
            # One that is gone makes others fail, which are well.
            raise ServersFailedError(self._run(self._abandon()) or error.failures, str(error)) from error
        return times

    @abstractmethod
    async def _prepare(self) -> None:
        """Whatever is to be done while servers still generate; raises ServersFailedError."""

    @abstractmethod
    async def _send(self, bucket: Sequence[tuple[str, Tensor]]) -> None:
        """Hand tensors over."""

    async def _everywhere(self, action: Callable[[RolloutClient], Awaitable[Result]]) -> dict[RolloutClient, Result]:
        """`on_every_server` within the deadline."""
        return await on_every_server(self._clients, action, timeout_s=self._settings.timeout_s)

    async def _open(self, times: PushTimes) -> None:
        with times.phase("pause"):
            await self._everywhere(lambda client: client.pause(self._settings.pause_mode))
            await self._everywhere(lambda client: client.weights.begin())

    async def _close(self, version: str, times: PushTimes) -> None:
        with times.phase("load"):
            await self._everywhere(lambda client: client.weights.end())
        with times.phase("flush"):
            if self._settings.pause_mode != "in_place":  # which keeps the keys and values of requests under way
                await self._everywhere(lambda client: client.flush_cache())
            # Last, so that no server has the name of weights that it does not hold.
            await self._everywhere(lambda client: client.weights.set_version(version))
            await verify_servers(self._clients, version, self._settings.verify, timeout_s=self._settings.timeout_s)
            # Only when all have them: a batch of rollouts must not come from two versions.
            await self._everywhere(lambda client: client.resume())

    async def _abandon(self) -> dict[RolloutClient, RolloutError]:
        """After a failure: close the session wherever one is open, so that a later push can begin another.

        Returns:
            Servers that did not answer at all, with the reason.
        """
        try:
            await self._everywhere(lambda client: client.weights.abandon())
        except ServersFailedError as error:
            return dict(error.failures)
        return {}

"""Weights as tensors, inside of one update: what all such transports share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from megacov.config.transports import PauseMode, Verification
from megacov.config.weight_sync import WeightSyncSection
from megacov.errors import RolloutError
from megacov.rollout import RolloutClient
from megacov.weight_sync.base import PushTimes, RunOnLoop, ServersFailedError, WeightTransport
from megacov.weight_sync.buckets import in_buckets
from megacov.weight_sync.pause import ServerPause
from megacov.weight_sync.servers import on_every_server, verify_servers

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How tensors are handed over.

    bucket_bytes: size of one message, unless one tensor alone is larger; either side holds one or two messages beside
        the weights. [bytes]
    timeout_s: deadline of one message, and of any other call to a server. [s]
    pause_mode: what happens to running requests.
    verify: what is checked before servers resume.
    """

    bucket_bytes: int = 1 << 29
    timeout_s: float = 300.0
    pause_mode: PauseMode = "retract"
    verify: Verification = "version"

    @classmethod
    def from_section(cls, sync: WeightSyncSection) -> SessionSettings:
        """Read the settings off a configuration."""
        return cls(
            bucket_bytes=sync.bucket_bytes, timeout_s=sync.timeout_s, pause_mode=sync.pause_mode, verify=sync.verify
        )


class SessionTransport(WeightTransport):
    """Hands tensors over between a begin and an end, and keeps no copy of them.

    A server that was lost therefore waits for the next push.
    """

    def __init__(self, clients: Sequence[RolloutClient], *, run: RunOnLoop, settings: SessionSettings) -> None:
        """Ask no server yet.

        Args:
            clients: one client per server; each push goes to the clients in the list at that time.
            run: runs the clients' coroutines.
            settings: how tensors are handed over.
        """
        self._clients, self._run, self._settings = clients, run, settings
        self._members: list[RolloutClient] = []
        self._pause = ServerPause(self._members, mode=settings.pause_mode)

    def push(self, version: int, named_tensors: Iterable[tuple[str, Tensor]], *, label: str | None = None) -> PushTimes:
        """Hand the weights over while the servers are paused; see `WeightTransport.push`."""
        times = PushTimes()
        # A server that joins meanwhile must take no part: it would get the name of weights that it does not hold.
        self._members[:] = self._clients
        if not self._members:
            return times
        self._prepare(named_tensors)
        try:
            self._run(self._open(times))
            self._hand_over(named_tensors, times)
            self._run(self._close(label or str(version), times))
        except ServersFailedError as error:
            # When one server dies, healthy ones fail too: blame only those that do not answer now.
            raise ServersFailedError(self._run(self._abandon()) or error.failures, str(error)) from error
        return times

    @abstractmethod
    def _prepare(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Prepare a push while servers still generate; raises ServersFailedError."""

    @abstractmethod
    def _hand_over(self, named_tensors: Iterable[tuple[str, Tensor]], times: PushTimes) -> None:
        """Hand the weights over to servers that have begun an update; raises ServersFailedError."""

    async def _everywhere(self, action: Callable[[RolloutClient], Awaitable[Result]]) -> dict[RolloutClient, Result]:
        """Run `on_every_server` within the deadline, on the servers of this push."""
        timeout_s = self._pause.deadline_s(self._settings.timeout_s)
        return await on_every_server(self._members, action, timeout_s=timeout_s)

    async def _keep_pause_short(self) -> None:
        await self._pause.keep_short(timeout_s=self._settings.timeout_s)

    async def _open(self, times: PushTimes) -> None:
        with times.phase("pause"):
            await self._pause.begin(timeout_s=self._settings.timeout_s)
            await self._everywhere(lambda client: client.weights.begin())

    async def _close(self, version: str, times: PushTimes) -> None:
        with times.phase("load"):
            await self._keep_pause_short()
            await self._everywhere(lambda client: client.weights.end())
        with times.phase("flush"):
            await self._keep_pause_short()
            if not self._pause.keeps_cache:
                await self._everywhere(lambda client: client.flush_cache())
            # Rename last, so that no server has the name of weights that it does not hold.
            await self._everywhere(lambda client: client.weights.set_version(version))
            await verify_servers(self._members, version, self._settings.verify, timeout_s=self._settings.timeout_s)
            # Resume once all servers have the weights: a rollout batch must not come from two versions.
            await self._pause.end(timeout_s=self._settings.timeout_s)

    async def _abandon(self) -> dict[RolloutClient, RolloutError]:
        """Close the session wherever one is open, so that a later push can begin another, and leave servers paused.

        Returns:
            Servers that did not answer at all, with the reason.
        """
        failures: dict[RolloutClient, RolloutError] = {}
        for step in (
            self._everywhere(lambda client: client.weights.abandon()),
            self._pause.give_up(timeout_s=self._settings.timeout_s),
        ):
            try:
                await step
            except ServersFailedError as error:
                failures = {**error.failures, **failures}
        return failures


class BucketTransport(SessionTransport):
    """Hands whole tensors over, bucket by bucket."""

    def _hand_over(self, named_tensors: Iterable[tuple[str, Tensor]], times: PushTimes) -> None:
        for bucket in in_buckets(times.gathered(named_tensors), max_bytes=self._settings.bucket_bytes):
            with times.phase("transfer"):
                self._run(self._keep_pause_short())
                self._run(self._send(bucket))

    @abstractmethod
    async def _send(self, bucket: Sequence[tuple[str, Tensor]]) -> None:
        """Hand tensors over; raises ServersFailedError."""

"""Weights by broadcast: the trainer sends buckets of bytes, and every rank of every server keeps its part."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megacov.config import RunConfig
from megacov.errors import RolloutError
from megacov.rollout import RolloutClient
from megacov.types import WeightGroup
from megacov.weight_sync.base import RunOnLoop, ServersFailedError
from megacov.weight_sync.buckets import describe, flatten
from megacov.weight_sync.meeting import Meeting, in_thread
from megacov.weight_sync.process_group import broadcast_as_rank_zero, join_group, leave, open_store
from megacov.weight_sync.servers import leave_on_every_server
from megacov.weight_sync.session import BucketTransport, SessionSettings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

_LEAVE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class _Joined:
    """A process group of this process and some servers."""

    group: ProcessGroup
    name: str
    members: tuple[RolloutClient, ...]


class BroadcastTransport(BucketTransport):
    """Broadcasts over a process group of this process and all servers.

    The group lasts from push to push. It is replaced when the set of servers has changed, and after a failure.
    """

    def __init__(
        self, clients: Sequence[RolloutClient], *, run: RunOnLoop, settings: SessionSettings, meeting: Meeting
    ) -> None:
        """Ask no server yet.

        Args:
            clients: one client per server; each push goes to the clients in the list at that time.
            run: runs the clients' coroutines.
            settings: how tensors are handed over.
            meeting: where this process meets the servers.
        """
        super().__init__(clients, run=run, settings=settings)
        self._meeting = meeting
        self._joined: _Joined | None = None

    @classmethod
    def from_config(
        cls, config: RunConfig, folder: Path, clients: Sequence[RolloutClient], *, run: RunOnLoop
    ) -> BroadcastTransport:
        """Meet the servers at weight_sync.host; see `WeightTransport.from_config`."""
        sync = config.weight_sync
        settings = SessionSettings.from_section(sync)
        return cls(clients, run=run, settings=settings, meeting=Meeting.of_this_rank(sync.host))

    def _prepare(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._run(self._meet())

    async def _meet(self) -> None:
        members = tuple(self._members)
        if self._joined is not None and self._joined.members != members:
            await self._leave()
        if self._joined is None:
            # A rank that waits for a missing one waits until its deadline, so check first that all servers answer.
            await self._everywhere(lambda client: client.model_info())
            try:
                self._joined = await self._join(members)
            except ServersFailedError as error:
                raise ServersFailedError(await self._abandon() or error.failures, str(error)) from error

    async def _join(self, members: tuple[RolloutClient, ...]) -> _Joined:
        meeting, timeout_s = self._meeting, self._settings.timeout_s
        offsets = [1 + sum(member.weights.num_ranks for member in members[:place]) for place in range(len(members))]
        world_size = 1 + sum(member.weights.num_ranks for member in members)
        name = f"megacov-{secrets.token_hex(4)}"
        store = open_store(meeting.host, world_size=world_size, timeout_s=timeout_s)

        def join() -> ProcessGroup:
            # NCCL's watchdog kills a process whose broadcast is late; this process must give up first.
            late_s = 2.0 * timeout_s if meeting.backend == "nccl" else timeout_s
            return join_group(store, name=name, backend=meeting.backend, world_size=world_size, timeout_s=late_s)

        groups = {
            member: WeightGroup(
                name=name,
                master_address=meeting.host,
                master_port=store.port,
                rank_offset=offset,
                world_size=world_size,
                backend=meeting.backend,
            )
            for member, offset in zip(members, offsets, strict=True)
        }
        joined = in_thread(join)
        try:
            await self._everywhere(lambda member: member.weights.init_group(groups[member]))
            async with asyncio.timeout(timeout_s):
                return _Joined(await joined, name, members)
        except (RuntimeError, TimeoutError) as error:  # of torch.distributed
            raise ServersFailedError({}, f"the process group of the servers did not form ({error!r}).") from error
        finally:
            joined.cancel()

    async def _send(self, bucket: Sequence[tuple[str, Tensor]]) -> None:
        assert self._joined is not None
        name, group, content = self._joined.name, self._joined.group, describe(bucket)
        data = flatten(bucket).to(self._meeting.device)
        taking = asyncio.ensure_future(
            self._everywhere(
                lambda member: member.weights.receive_broadcast(content, group_name=name, flush_cache=False)
            )
        )
        # In a thread: NCCL's first broadcast returns once all ranks have joined it, which needs this loop's requests.
        sending = in_thread(lambda: broadcast_as_rank_zero(data, group))
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await asyncio.gather(taking, sending)
        except (RuntimeError, TimeoutError) as error:  # of torch.distributed
            raise ServersFailedError({}, f"a broadcast failed ({error!r}).") from error
        finally:
            taking.cancel()
            sending.cancel()

    async def _abandon(self) -> dict[RolloutClient, RolloutError]:
        await self._leave()
        return await super()._abandon()

    async def _leave(self) -> None:
        """Leave the group, in which a rank may be stuck, and have the servers that answer leave it too."""
        if self._joined is None:
            return
        joined, self._joined = self._joined, None
        with suppress(RuntimeError, TimeoutError):  # of torch.distributed; the next group is a new one
            async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                await in_thread(lambda: leave(joined.group, backend=self._meeting.backend))
        staying = [member for member in joined.members if member in self._clients]
        await leave_on_every_server(staying, joined.name, timeout_s=self._settings.timeout_s)

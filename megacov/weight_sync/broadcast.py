"""Weights by broadcast: the trainer sends buckets of bytes, and every rank of every server keeps its part of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch.distributed as dist

from megacov.errors import RolloutError, WeightSyncError
from megacov.types import WeightGroup
from megacov.weight_sync.base import BroadcastClient, PushTimes
from megacov.weight_sync.buckets import FilledBucket, fill_buckets
from megacov.weight_sync.process_group import join_as_rank_zero, open_store

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class BroadcastSettings:
    """How weights are broadcast.

    backend: of the group, "gloo" or "nccl".
    host: address of this machine that the servers reach.
    max_bucket_bytes: sent as one message; as much memory is needed on either side.
    timeout_s: of one message, and of joining the group.
    pause_mode: retract has requests under way read anew with the new weights; in_place keeps what they have.
    verify: ask every server for its version before it goes on.
    """

    backend: Literal["gloo", "nccl"]
    host: str = "127.0.0.1"
    max_bucket_bytes: int = 1 << 30
    timeout_s: float = 600.0
    pause_mode: Literal["abort", "retract", "in_place"] = "retract"
    verify: bool = True


class BroadcastTransport:
    """A `WeightTransport` over a process group of this process and all servers.

    The group lasts from push to push. After a failure it is given up, and the next push makes another with whichever
    servers there are then; a server that the failed one has left with mixed weights stays paused until that succeeds.
    """

    def __init__(
        self,
        clients: Sequence[BroadcastClient],
        *,
        ranks_per_server: Sequence[int],
        device: torch.device,
        settings: BroadcastSettings,
    ) -> None:
        """Set up; nobody is asked yet.

        Args:
            clients: one per server.
            ranks_per_server: tensor-parallel ranks of each server, in the same order.
            device: where messages are put together: the GPU for NCCL, the CPU for gloo.
            settings: how they are sent.
        """
        assert len(clients) == len(ranks_per_server)
        self._clients, self._ranks_per_server = clients, ranks_per_server
        self._device, self._settings = device, settings
        self._group: ProcessGroup | None = None
        self._store: TCPStore | None = None
        self._name = ""
        self._is_dirty = False

    async def push(self, version: int, named_tensors: Iterable[tuple[str, Tensor]]) -> PushTimes:
        """Broadcast the weights to all servers while they are paused.

        Args:
            version: of the new weights.
            named_tensors: every weight by its Hugging Face name; read once, in order.

        Returns:
            Seconds of the transfer, seconds paused, and bytes.

        Raises:
            WeightSyncError: the weights are not whole on every server. None goes on then, and a later push starts from
                the beginning.
        """
        started, num_bytes = time.monotonic(), 0
        try:
            await self._join()
            await self._on_every_server(self._open)
            self._is_dirty = True
            paused = time.monotonic()
            for bucket in fill_buckets(named_tensors, max_bytes=self._settings.max_bucket_bytes):
                await self._send(bucket)
                num_bytes += bucket.data.nbytes
            sent = time.monotonic()
            await self._on_every_server(self._close, str(version))
            # Only when all have them: a batch of rollouts must not come from two versions.
            await self._on_every_server(lambda client: client.resume())
        except (RolloutError, RuntimeError, TimeoutError) as error:
            await self._give_up()
            raise WeightSyncError(
                f"New weights did not arrive whole, so the servers stay paused until they do: {error}"
            ) from error
        self._is_dirty = False
        return PushTimes(transfer_s=sent - started, paused_s=time.monotonic() - paused, num_bytes=num_bytes)

    async def _join(self) -> None:
        """Make the group, unless there is one."""
        if self._group is not None:
            return
        settings, world_size = self._settings, 1 + sum(self._ranks_per_server)
        self._name = f"megacov-{secrets.token_hex(4)}"
        self._store = open_store(settings.host, world_size=world_size, timeout_s=settings.timeout_s)
        offsets = [1 + sum(self._ranks_per_server[:place]) for place in range(len(self._clients))]
        store, name = self._store, self._name

        def join() -> ProcessGroup:
            return join_as_rank_zero(
                store, name=name, backend=settings.backend, world_size=world_size, timeout_s=settings.timeout_s
            )

        async with asyncio.timeout(settings.timeout_s):
            self._group, *_ = await asyncio.gather(
                asyncio.to_thread(join),
                *(
                    client.init_weights_update_group(
                        WeightGroup(
                            name=name,
                            master_address=settings.host,
                            master_port=store.port,
                            rank_offset=offset,
                            world_size=world_size,
                            backend=settings.backend,
                        )
                    )
                    for client, offset in zip(self._clients, offsets, strict=True)
                ),
            )

    async def _open(self, client: BroadcastClient) -> None:
        await client.pause(self._settings.pause_mode)
        if self._is_dirty:
            # A session that a failed push has left open; a server that has none refuses.
            with suppress(RolloutError):
                await client.end_weight_update()
        await client.begin_weight_update()

    async def _send(self, bucket: FilledBucket) -> None:
        data, group = bucket.data.to(self._device), self._group
        async with asyncio.timeout(self._settings.timeout_s):
            await asyncio.gather(
                asyncio.to_thread(dist.broadcast, data, 0, group=group),
                *(
                    client.update_weights_from_distributed(bucket.content, group_name=self._name, flush_cache=False)
                    for client in self._clients
                ),
            )

    async def _close(self, client: BroadcastClient, version: str) -> None:
        await client.end_weight_update()
        await client.update_weight_version(version)
        if self._settings.pause_mode != "in_place":
            await client.flush_cache()
        if self._settings.verify:
            found = (await client.model_info()).get("weight_version")
            if found != version:
                raise RolloutError(f"{client.address} reports weight version {found} after an update to {version}.")

    async def _give_up(self) -> None:
        """Leave the group, in which a rank may be stuck; servers that still answer leave it too."""
        if self._group is None:
            return
        self._group = self._store = None
        leaving = (client.destroy_weights_update_group(self._name) for client in self._clients)
        await asyncio.gather(*leaving, return_exceptions=True)

    async def _on_every_server(self, action: Callable[..., Awaitable[None]], *args: object) -> None:
        """Act on all servers at once, to the end on each of them, then raise the first failure."""
        outcomes = await asyncio.gather(*(action(client, *args) for client in self._clients), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

"""Weights by way of a folder that trainer and servers both see: works with any layout on either side."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megacov.errors import RolloutError, WeightSyncError
from megacov.weight_sync.base import PushTimes, WeightClient
from megacov.weight_sync.snapshot import write_snapshot

if TYPE_CHECKING:
    from torch import Tensor

_VERSION_FOLDER = re.compile(r"v\d+")
_MAX_SHARD_BYTES = 4 * 1024**3


class DiskTransport:
    """Writes `v<version>` folders and has every server load the newest one. A `WeightTransport`."""

    def __init__(
        self,
        clients: Sequence[WeightClient],
        *,
        source_model: Path,
        directory: Path,
        keep: int = 2,
        verify: bool = True,
        max_shard_bytes: int = _MAX_SHARD_BYTES,
    ) -> None:
        """Set up; nothing is written yet.

        Args:
            clients: one per server; each push goes to those that are in it then.
            source_model: folder to copy configuration and tokenizer from.
            directory: of the versions, under one path for the trainer and all servers; used for nothing else.
            keep: versions that stay on disk, at least 1.
            verify: ask every server for its version before it goes on.
            max_shard_bytes: of one file of weights.
        """
        self._clients = clients
        self._source_model = source_model
        self._directory = directory.resolve()
        self._keep = keep
        self._verify = verify
        self._newest: tuple[Path, str] | None = None
        self._max_shard_bytes = max_shard_bytes

    async def push(self, version: int, named_tensors: Iterable[tuple[str, Tensor]]) -> PushTimes:
        """Write the weights, and have all servers load them while they are paused.

        Requests under way are paused as well, and go on with the new weights; their tokens tell the version of each.

        Args:
            version: of the new weights.
            named_tensors: every weight by its Hugging Face name, on the CPU.

        Returns:
            Seconds for writing, seconds paused, and bytes.

        Raises:
            WeightSyncError: if the weights are not whole on every server. No server goes on then: all that could be
                reached stay paused, and a later push starts from the beginning.
        """
        started = time.monotonic()
        folder = self._directory / f"v{version}"
        num_bytes = write_snapshot(
            folder, named_tensors, source_model=self._source_model, max_shard_bytes=self._max_shard_bytes
        )
        written = time.monotonic()
        self._newest = folder, str(version)
        await self._on_every_server(self._load, folder, str(version))
        # Only when all have loaded: a batch of rollouts must not come from two versions.
        await self._on_every_server(self._resume)
        self._remove_old(folder)
        return PushTimes(transfer_s=written - started, paused_s=time.monotonic() - written, num_bytes=num_bytes)

    async def bring_up_to_date(self, client: WeightClient) -> None:
        """Give one server what the last push wrote, as to a server that was not there then, and let it go on.

        Args:
            client: of the server.

        Raises:
            RolloutError: it does not have them.
        """
        if self._newest is not None:
            await self._load(client, *self._newest)
        await client.resume()

    async def _load(self, client: WeightClient, folder: Path, version: str) -> None:
        await client.pause("retract")
        await client.update_weights_from_disk(str(folder), weight_version=version, flush_cache=True)
        await client.flush_cache()
        if self._verify:
            loaded = (await client.model_info()).get("weight_version")
            if loaded != version:
                raise RolloutError(f"{client.address} reports weight version {loaded} after an update to {version}.")

    async def _resume(self, client: WeightClient) -> None:
        await client.resume()

    async def _on_every_server(self, action: Callable[..., Awaitable[None]], *args: object) -> None:
        """Act on all servers at once, to the end on each of them, then raise the first failure."""
        outcomes = await asyncio.gather(*(action(client, *args) for client in self._clients), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, RolloutError):
                raise WeightSyncError(
                    f"New weights did not arrive whole, so the servers stay paused until they do: {outcome}"
                ) from outcome
            if outcome is not None:
                raise outcome

    def _remove_old(self, newest: Path) -> None:
        """Keep the versions written last; after a resumed run those are not the ones with the highest numbers."""
        versions = [folder for folder in self._directory.iterdir() if _VERSION_FOLDER.fullmatch(folder.name)]
        versions.sort(key=lambda folder: (folder == newest, folder.stat().st_mtime_ns))
        for folder in versions[: -self._keep]:
            shutil.rmtree(folder)

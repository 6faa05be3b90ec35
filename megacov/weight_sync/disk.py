"""Weights by way of a folder that trainer and servers both see: works with any layout on either side."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megacov.config.transports import PauseMode
from megacov.rollout import RolloutClient
from megacov.weight_sync.base import PushTimes, RunOnLoop, Verification
from megacov.weight_sync.servers import on_every_server, verify_servers
from megacov.weight_sync.snapshot import write_snapshot

if TYPE_CHECKING:
    from torch import Tensor

_VERSION_FOLDER = re.compile(r"v\d+")
_UNFINISHED_FOLDER = re.compile(r"tmp-v\d+-.*")  # of a process that was killed while it wrote
_MAX_SHARD_BYTES = 4 * 1024**3


class DiskTransport:
    """Writes `v<version>` folders and has every server load the newest one. A `WeightTransport`."""

    def __init__(
        self,
        clients: Sequence[RolloutClient],
        *,
        run: RunOnLoop,
        source_model: Path,
        directory: Path,
        keep: int = 2,
        pause_mode: PauseMode = "retract",
        verify: Verification = "version",
        max_shard_bytes: int = _MAX_SHARD_BYTES,
    ) -> None:
        """Set up; nothing is written yet.

        Args:
            clients: one per server; each push goes to those that are in it then.
            run: runs what the clients do.
            source_model: folder to copy configuration and tokenizer from.
            directory: of the versions, under one path for the trainer and all servers; used for nothing else.
            keep: versions that stay on disk, at least 1.
            pause_mode: what becomes of requests under way.
            verify: what is checked before servers go on.
            max_shard_bytes: of one file of weights.
        """
        self._clients, self._run = clients, run
        self._source_model = source_model
        self._directory = directory.resolve()
        self._keep = keep
        self._pause_mode, self._verify = pause_mode, verify
        self._flushes = pause_mode != "in_place"  # which keeps the keys and values of requests under way
        self._newest: tuple[Path, str] | None = None
        self._max_shard_bytes = max_shard_bytes

    def push(self, version: int, named_tensors: Iterable[tuple[str, Tensor]]) -> PushTimes:
        """Write the weights, and have all servers load them while they are paused.

        Requests under way are paused as well, and go on with the new weights; their tokens tell the version of each.

        Args:
            version: of the new weights.
            named_tensors: every weight by its Hugging Face name.

        Returns:
            What it cost.

        Raises:
            WeightSyncError: they cannot be written.
            ServersFailedError: the weights are not whole on every server. No server goes on then: all that could be
                reached stay paused, and a later push starts from the beginning.
        """
        times, folder = PushTimes(), self._directory / f"v{version}"
        with times.phase("transfer"):
            write_snapshot(
                folder,
                times.gathered(named_tensors),
                source_model=self._source_model,
                max_shard_bytes=self._max_shard_bytes,
            )
        times.transfer_s -= times.gather_s
        self._newest = folder, str(version)
        self._run(self._load_everywhere(folder, str(version), times))
        self._remove_old(folder)
        return times

    async def bring_up_to_date(self, client: RolloutClient) -> None:
        """Give one server what the last push wrote, as to a server that was not there then, and let it go on.

        Args:
            client: of the server.

        Raises:
            RolloutError: it does not have them.
        """
        if self._newest is not None:
            folder, version = self._newest
            # What it may still have under way has been answered by others.
            await client.pause("abort")
            await client.weights.load_from_disk(str(folder), weight_version=version, flush_cache=True)
            await client.flush_cache()
            await verify_servers([client], version, "version")
        await client.resume()

    async def _load_everywhere(self, folder: Path, version: str, times: PushTimes) -> None:
        with times.phase("pause"):
            await on_every_server(self._clients, lambda client: client.pause(self._pause_mode))
        with times.phase("load"):
            await on_every_server(
                self._clients,
                lambda client: client.weights.load_from_disk(
                    str(folder), weight_version=version, flush_cache=self._flushes
                ),
            )
        with times.phase("flush"):
            if self._flushes:
                await on_every_server(self._clients, lambda client: client.flush_cache())
            await verify_servers(self._clients, version, self._verify)
            # Only when all have loaded: a batch of rollouts must not come from two versions.
            await on_every_server(self._clients, lambda client: client.resume())

    def _remove_old(self, newest: Path) -> None:
        """Keep the versions written last; after a resumed run those are not the ones with the highest numbers."""
        try:
            folders = list(self._directory.iterdir())
            versions = [folder for folder in folders if _VERSION_FOLDER.fullmatch(folder.name)]
            versions.sort(key=lambda folder: (folder == newest, folder.stat().st_mtime_ns))
            unfinished = [folder for folder in folders if _UNFINISHED_FOLDER.fullmatch(folder.name)]
            for folder in versions[: -self._keep] + unfinished:
                shutil.rmtree(folder)
        except OSError as error:  # files that a server still has open on a network file system, for one
            print(f"megacov: old weights stay in {self._directory} until the next push: {error}", flush=True)

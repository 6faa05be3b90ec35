"""Weights through a folder that trainer and servers both see; works with any layout on either side."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megacov.checkpoint.manifest import FileRecord, check_file
from megacov.config import RunConfig
from megacov.config.transports import PauseMode, Verification
from megacov.errors import WeightSyncError
from megacov.rollout import RolloutClient
from megacov.weight_sync.base import PushTimes, RunOnLoop, ServersFailedError, WeightTransport
from megacov.weight_sync.folder_owner import FolderOwner, read_owner, write_owner
from megacov.weight_sync.pause import ServerPause
from megacov.weight_sync.servers import Checksums, on_every_server, verify_servers
from megacov.weight_sync.snapshot import write_snapshot

if TYPE_CHECKING:
    from torch import Tensor

_VERSION_FOLDER = re.compile(r"v\d+")
_UNFINISHED_FOLDER = re.compile(r"tmp-v\d+-.*")  # left by a process that was killed while writing
_MAX_SHARD_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class _Written:
    """The weights of the last push: their folder, the label that servers report, and a record of every file."""

    folder: Path
    label: str
    records: tuple[FileRecord, ...]


class DiskTransport(WeightTransport):
    """Writes `v<version>` folders and has every server load the newest one."""

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
        owner: FolderOwner | None = None,
        max_shard_bytes: int = _MAX_SHARD_BYTES,
    ) -> None:
        """Write nothing yet.

        Args:
            clients: one client per server; each push goes to the clients in the list at that time.
            run: runs the clients' coroutines.
            source_model: folder to copy configuration and tokenizer from.
            directory: folder of the versions, at the same path for the trainer and all servers; used for nothing else.
            keep: number of versions that stay on disk, at least 1.
            pause_mode: what happens to running requests.
            verify: what is checked before servers resume.
            owner: the run, which must own the folder at each push; None does not look.
            max_shard_bytes: largest file of weights. [bytes]
        """
        self._clients, self._run = clients, run
        self._source_model = source_model
        self._directory = directory.resolve()
        self._keep = keep
        self._pause, self._verify, self._owner = ServerPause(clients, mode=pause_mode), verify, owner
        self._newest: _Written | None = None
        self._checksums: Checksums = {}
        self._max_shard_bytes = max_shard_bytes

    @classmethod
    def from_config(
        cls, config: RunConfig, folder: Path, clients: Sequence[RolloutClient], *, run: RunOnLoop
    ) -> DiskTransport:
        """Write to weight_sync.directory, or else into the run folder; see `WeightTransport.from_config`."""
        sync = config.weight_sync
        return cls(
            clients,
            run=run,
            source_model=config.model.path,
            directory=sync.directory or folder / "weights",
            keep=sync.keep,
            pause_mode=sync.pause_mode,
            verify=sync.verify,
            owner=FolderOwner.of_run(folder),
        )

    def push(self, version: int, named_tensors: Iterable[tuple[str, Tensor]], *, label: str | None = None) -> PushTimes:
        """Write the weights, and have all servers load them while paused; see `WeightTransport.push`.

        Running requests are paused too, and continue with the new weights; each token records its version.
        """
        times, folder, label = PushTimes(), self._directory / f"v{version}", label or str(version)
        self._check_owner()
        with times.phase("transfer"):
            snapshot = write_snapshot(
                folder,
                times.gathered(named_tensors),
                source_model=self._source_model,
                max_shard_bytes=self._max_shard_bytes,
                version=version,
            )
        times.transfer_s -= times.gather_s
        self._newest = _Written(folder, label, snapshot.records)
        try:
            self._run(self._load_everywhere(folder, label, times))
        except ServersFailedError:
            with suppress(ServersFailedError):  # the first error counts
                self._run(self._pause.give_up())
            raise
        self._remove_old(folder)
        return times

    def _check_owner(self) -> None:
        """Take a folder that nobody owns; raises WeightSyncError if it belongs to another run."""
        if self._owner is None:
            return
        found = read_owner(self._directory)
        if found is not None and found.run_id != self._owner.run_id:
            raise WeightSyncError(
                f"{self._directory} now belongs to the run in {found.run}: give each run its own weight_sync.directory."
            )
        if found is None:
            try:
                write_owner(self._directory, self._owner)
            except OSError as error:
                raise WeightSyncError(f"{self._directory} cannot be written: {error.strerror}.") from error

    async def bring_up_to_date(self, client: RolloutClient) -> None:
        """Have one server load what the last push wrote, and resume it; see `WeightTransport.bring_up_to_date`.

        The files are first compared with the sha256 of what was written. With verification by checksums, the server's
        weights are then compared with those that servers with equally many ranks reported after the push.
        """
        if self._newest is not None:
            folder, label = self._newest.folder, self._newest.label
            await self._check_unchanged(self._newest)
            # Other servers have answered whatever it still has under way.
            await client.pause("abort")
            await client.weights.load_from_disk(str(folder), weight_version=label, flush_cache=True)
            await client.flush_cache()
            await verify_servers([client], label, self._verify_one, like=self._checksums)
        await client.resume()

    @property
    def _verify_one(self) -> Verification:
        return "checksums" if self._verify == "checksums" else "version"

    async def _check_unchanged(self, written: _Written) -> None:
        checks = (asyncio.to_thread(check_file, written.folder, record) for record in written.records)
        problem = next((problem for problem in await asyncio.gather(*checks) if problem is not None), None)
        if problem is not None:
            raise WeightSyncError(
                f"{written.folder} is not as this run wrote it ({problem}): keep others from writing to this folder."
            )

    async def _load_everywhere(self, folder: Path, version: str, times: PushTimes) -> None:
        with times.phase("pause"):
            await self._pause.begin()
        flushes = not self._pause.keeps_cache
        with times.phase("load"):
            await on_every_server(
                self._clients,
                lambda client: client.weights.load_from_disk(str(folder), weight_version=version, flush_cache=flushes),
                timeout_s=self._pause.deadline_s(None),
            )
        with times.phase("flush"):
            await self._pause.keep_short()
            if not self._pause.keeps_cache:
                await on_every_server(self._clients, lambda client: client.flush_cache())
            self._checksums = await verify_servers(self._clients, version, self._verify)
            # Resume once all servers have loaded: a rollout batch must not come from two versions.
            await self._pause.end()

    def _remove_old(self, newest: Path) -> None:
        """Keep the versions written last; in a resumed run those need not have the highest numbers."""
        try:
            folders = list(self._directory.iterdir())
            versions = [folder for folder in folders if _VERSION_FOLDER.fullmatch(folder.name)]
            versions.sort(key=lambda folder: (folder == newest, folder.stat().st_mtime_ns))
            unfinished = [folder for folder in folders if _UNFINISHED_FOLDER.fullmatch(folder.name)]
            for folder in versions[: -self._keep] + unfinished:
                shutil.rmtree(folder)
        except OSError as error:  # such as files that a server has open on a network file system
            print(f"megacov: old weights stay in {self._directory} until the next push: {error}", flush=True)

"""A policy's weights and optimizer state in Megatron's dist_checkpointing format, which any layout can load.

Megatron plans what each rank writes, and torch writes it in a thread of this process. Megatron's own writers are
processes, and a save would wait forever for one that dies. A thread cannot die unnoticed, and the deadline of the
save's process group covers ranks that do not answer.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, CheckpointingException, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.optimizer import MegatronOptimizer
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from megacov.checkpoint.disk import disk_errors
from megacov.checkpoint.manifest import FileRecord, record_file
from megacov.errors import CheckpointError
from megacov.megatron.optimizer_state import optimizer_shards, set_optimizer_state
from megacov.megatron.weights import unwrap
from megacov.parallel.collectives import all_gather_bytes, broadcast_bytes, group_rank

FORMAT = ("torch_dist", 1)
_SUFFIX = ".distcp"
# Errors of loading a checkpoint with intact files. They mean that it belongs to another model.
_LOAD_ERRORS = (CheckpointingException, CheckpointException, OSError, KeyError)


class SavePlan:
    """This rank's part of a save, in torch's form: sharded tensors by key.

    Megatron appends to `finalize_fns`, which nothing calls: `write_format` does their work.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        """Start with an empty list of functions."""
        self.state = state
        self.finalize_fns: list[Any] = []


class _PlanOnly(TorchDistSaveShardedStrategy):
    """Uses Megatron's translation of a sharded state dict and leaves writing to the caller."""

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Any, async_strategy: str = "") -> SavePlan:
        del checkpoint_dir, async_strategy
        named, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        return SavePlan(mcore_to_pyt_state_dict(named, False))


def model_shards(chunks: Sequence[nn.Module]) -> dict[str, Any]:
    """Megatron's sharded state dict of this rank's model, with one entry per virtual stage.

    Args:
        chunks: the virtual stages of this rank, possibly wrapped.

    Returns:
        "model0", "model1", ... -> sharded state dict that refers to the parameters themselves.
    """
    return {f"model{index}": unwrap(chunk).sharded_state_dict() for index, chunk in enumerate(chunks)}


def shards_by_parameter(shards: Mapping[str, Any]) -> dict[int, Any]:
    """Megatron's sharded tensor of each parameter.

    Args:
        shards: sharded state dicts from `model_shards`.

    Returns:
        id() of a parameter -> ShardedTensor or factory.
    """
    values = ((shard, getattr(shard, "data", None)) for shard in nested_values(shards))
    return {id(data): shard for shard, data in values if isinstance(data, nn.Parameter)}


def _staged(shards: dict[str, Any]) -> dict[str, Any]:
    """Replace all tensors by copies on the CPU, which further training does not change."""
    for shard in nested_values(shards):
        if isinstance(getattr(shard, "data", None), torch.Tensor):
            data = shard.data.detach()
            shard.data = data.clone() if data.device.type == "cpu" else data.to("cpu", non_blocking=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return shards


class _Writer(FileSystemWriter):
    """torch's writer, with a flag that tells when the tensors are written."""

    has_written = False

    def write_data(self, plan: Any, planner: Any) -> Any:
        written = super().write_data(plan, planner)
        self.has_written = True
        return written


class BackgroundSave:
    """One checkpoint being written and published. Once it is done, `failure` is the reason it failed, or None."""

    def __init__(
        self,
        plan: SavePlan,
        folder: Path,
        group: ProcessGroup,
        *,
        write_more: Callable[[Path], Sequence[str]],
        publish: Callable[[Sequence[FileRecord]], None],
    ) -> None:
        """Start writing.

        Collectives: group: in the background, torch's plan and results; `all_gather_bytes` of the files of each rank;
        `broadcast_bytes` of rank 0's verdict on publishing.

        Args:
            plan: this rank's part.
            folder: existing folder that all ranks see.
            group: all ranks, over gloo; nothing else may use it during the save. Its deadline bounds the save.
            write_more: (folder) -> names of further files that it wrote for this rank.
            publish: called on rank 0 with the files of all ranks once all are on disk; a CheckpointError it raises
                fails the save on all ranks.
        """
        self.failure: str | None = "the writer thread ended without a result"
        self._plan, self._folder, self._group = plan, folder, group
        self._write_more, self._publish = write_more, publish
        self._writer = _Writer(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
        # A daemon thread, so that one that hangs in the file system does not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=f"save-{folder.name}", daemon=True)
        self._thread.start()

    @property
    def waits_for_others(self) -> bool:
        """Whether this rank's tensors are on the disk."""
        return self._writer.has_written

    @property
    def is_done(self) -> bool:
        """Whether this rank has nothing left to do."""
        return not self._thread.is_alive()

    def wait(self, *, timeout_s: float) -> None:
        """Wait at most timeout_s seconds for this rank's part."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        rank = dist.get_rank()
        records, failure = self._write(rank)
        try:
            self.failure = self._publish_on_rank_zero(records, failure)
        except (RuntimeError, ValueError) as error:  # ValueError: the main thread has left the job meanwhile
            self.failure = f"rank {rank} lost the others: {_first_line(error)}"

    def _write(self, rank: int) -> tuple[list[FileRecord], str | None]:
        """Write this rank's files and read them back for checksums; returns the records and the failure, if any."""
        try:
            planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
            save(self._plan.state, storage_writer=self._writer, planner=planner, process_group=self._group)
            more = self._write_more(self._folder)
            own = [path.name for path in sorted(self._folder.glob(f"__{rank}_*{_SUFFIX}"))]
            return [record_file(self._folder, name) for name in (*own, *more)], None
        except CheckpointException as error:
            culprit, (cause, _) = next(iter(error.failures.items()))
            return [], f"rank {culprit}: {_first_line(cause)}"
        except (CheckpointError, MemoryError, OSError, RuntimeError, ValueError) as error:
            return [], f"rank {rank}: {_first_line(error)}"
        finally:
            self._plan.state = {}  # frees the copies, which are as large as the weights and the optimizer state

    def _publish_on_rank_zero(self, records: Sequence[FileRecord], failure: str | None) -> str | None:
        """Publish if all ranks have written; returns the failure, the same on all ranks, or None.

        A rank that failed takes part too. Otherwise the others would wait for it until the deadline.
        """
        own = json.dumps([failure, [astuple(record) for record in records]]).encode()
        answers = [json.loads(part) for part in all_gather_bytes(own, group=self._group)]
        verdict = None
        if group_rank(self._group) == 0:
            reason = next((failure for failure, _ in answers if failure is not None), None)
            if reason is None:
                try:
                    self._publish([FileRecord(*entry) for _, part in answers for entry in part])
                except CheckpointError as error:
                    reason = str(error)
            verdict = json.dumps(reason).encode()
        answer: str | None = json.loads(broadcast_bytes(verdict, src_rank=0, group=self._group))
        return answer


def plan_save(
    chunks: Sequence[nn.Module], optimizer: MegatronOptimizer, folder: Path, *, scratch: Path | None
) -> SavePlan:
    """Copy weights and optimizer state to the CPU and have Megatron plan who writes what; training may then continue.

    Megatron lists the folder on rank 0 before its collective. If that failed there, the other ranks would answer rank
    0's next collective with their part of this one, so Megatron gets a folder that nobody renames or fills.

    Collectives: those of `optimizer_shards`; Megatron's check that every part is written once (world).

    Args:
        chunks: the virtual stages of this rank.
        optimizer: optimizer of these chunks.
        folder: existing, empty folder that all ranks see.
        scratch: on rank 0, an empty folder on its own disk; None on the others. Its files move to `folder`.

    Returns:
        This rank's part of the save.

    Raises:
        CheckpointError: rank 0 cannot write to the folder; raised there alone, after all collectives.
    """
    shards = model_shards(chunks)
    optimizer_state = optimizer_shards(optimizer, shards_by_parameter(shards), filled=True)
    staged = _staged({**shards, "optimizer": optimizer_state})
    try:
        plan: SavePlan = dist_checkpointing.save(
            staged, str(scratch or folder), _PlanOnly(*FORMAT), async_sharded_save=True
        )
        if scratch is not None:
            folder.stat()  # Megatron-Core 0.19 writes nothing into scratch, so no move would notice that it is gone
            for path in scratch.iterdir():
                shutil.move(path, folder / path.name)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder} cannot be written: {_first_line(error)}.") from error
    return plan


def write_format(folder: Path) -> None:
    """Record Megatron's format in a checkpoint that all ranks have written; raises CheckpointError. Rank 0 only."""
    with disk_errors(folder, "written"):
        save_config(CheckpointingConfig(*FORMAT), str(folder))


def load_checkpoint(
    chunks: Sequence[nn.Module], optimizer: MegatronOptimizer, folder: Path, *, adam_steps: int
) -> None:
    """Load this rank's weights and optimizer state, whatever layout wrote them.

    Collectives: those of Megatron's load (world), then of `set_optimizer_state`.

    Args:
        chunks: the virtual stages of this rank; written in place.
        optimizer: optimizer of these chunks; written in place.
        folder: checkpoint with verified files.
        adam_steps: steps that Adam has made.

    Raises:
        CheckpointError: Megatron cannot load it into this model.
    """
    shards = model_shards(chunks)
    state = optimizer_shards(optimizer, shards_by_parameter(shards), filled=False)
    try:
        loaded = dist_checkpointing.load({**shards, "optimizer": state}, str(folder))
    except _LOAD_ERRORS as error:
        raise CheckpointError(f"{folder} cannot be loaded into this model: {_first_line(error)}.") from error
    _load_models(chunks, loaded)
    set_optimizer_state(optimizer, loaded["optimizer"], adam_steps=adam_steps)


def _load_models(chunks: Sequence[nn.Module], loaded: Mapping[str, Any]) -> None:
    for index, chunk in enumerate(chunks):
        unwrap(chunk).load_state_dict(loaded[f"model{index}"])


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def make_save_group(*, deadline_s: float) -> ProcessGroup:
    """A group of all ranks for saves in the background.

    Collectives: group creation on all ranks.

    Args:
        deadline_s: seconds that a rank waits for another in this group.

    Returns:
        The group, over gloo.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=deadline_s))

"""A policy's weights and optimizer state in Megatron's dist_checkpointing format, which any layout can load.

Megatron plans what each rank writes. The writing is torch's, in a thread of this process: Megatron's own writers are
processes, and a save waits for ever for one that dies. A thread cannot die unseen; ranks that do not answer run into
the deadline of the group over which they agree.
"""

from __future__ import annotations

import json
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
# What loading a checkpoint whose files are whole can raise: it is of another model.
_LOAD_ERRORS = (CheckpointingException, CheckpointException, OSError, KeyError)


class SavePlan:
    """What this rank writes, as torch takes it. Megatron adds to the functions; `write_format` does what they would."""

    def __init__(self, state: dict[str, Any]) -> None:
        """Hold it.

        Args:
            state: torch's sharded tensors by key.
        """
        self.state = state
        self.finalize_fns: list[Any] = []


class _PlanOnly(TorchDistSaveShardedStrategy):
    """Takes Megatron's translation of a sharded state dict, and leaves the writing to the caller."""

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Any, async_strategy: str = "") -> SavePlan:
        del checkpoint_dir, async_strategy
        named, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        return SavePlan(mcore_to_pyt_state_dict(named, False))


def model_shards(chunks: Sequence[nn.Module]) -> dict[str, Any]:
    """Megatron's sharded state dict of the model on this rank, one entry a virtual stage.

    Args:
        chunks: the virtual stages of this rank, possibly wrapped.

    Returns:
        "model0", "model1", .. -> sharded state dict, whose data are the parameters themselves.
    """
    return {f"model{index}": unwrap(chunk).sharded_state_dict() for index, chunk in enumerate(chunks)}


def shards_by_parameter(shards: Mapping[str, Any]) -> dict[int, Any]:
    """Megatron's sharded tensor of each parameter.

    Args:
        shards: from `model_shards`.

    Returns:
        id() of a parameter -> ShardedTensor or factory.
    """
    values = ((shard, getattr(shard, "data", None)) for shard in nested_values(shards))
    return {id(data): shard for shard, data in values if isinstance(data, nn.Parameter)}


def _staged(shards: dict[str, Any]) -> dict[str, Any]:
    """The same with copies of all tensors on the CPU, which training may not change any more."""
    for shard in nested_values(shards):
        if isinstance(getattr(shard, "data", None), torch.Tensor):
            data = shard.data.detach()
            shard.data = data.clone() if data.device.type == "cpu" else data.to("cpu", non_blocking=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return shards


class _Writer(FileSystemWriter):
    """torch's writer, which knows when it has written."""

    has_written = False

    def write_data(self, plan: Any, planner: Any) -> Any:
        written = super().write_data(plan, planner)
        self.has_written = True
        return written


class BackgroundSave:
    """One checkpoint being written and published. Once it is done, `failure` says why it failed; None if it did not."""

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

        Collectives: group: in the background, torch's plan and results; `all_gather_bytes` of what each rank wrote;
        `broadcast_bytes` of whether rank 0 has published it.

        Args:
            plan: what this rank writes.
            folder: that all ranks see; exists.
            group: all ranks, over gloo, used by nothing else meanwhile; its deadline bounds the save.
            write_more: (folder) -> names of further files that it has written for this rank.
            publish: called on rank 0 with the files of all ranks, once all are on the disk; a CheckpointError of it
                fails the save on all ranks.
        """
        self.failure: str | None = "the writer ended without a word"
        self._plan, self._folder, self._group = plan, folder, group
        self._write_more, self._publish = write_more, publish
        self._writer = _Writer(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
        # A daemon: a thread that hangs in the file system must not keep the process from leaving.
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
        """Wait for this rank's part.

        Args:
            timeout_s: seconds to wait at most.
        """
        self._thread.join(timeout_s)

    def _run(self) -> None:
        rank = dist.get_rank()
        records, failure = self._write(rank)
        try:
            self.failure = self._publish_on_rank_zero(records, failure)
        except (RuntimeError, ValueError) as error:  # ValueError: the main thread has left the job meanwhile
            self.failure = f"rank {rank} lost the others: {_first_line(error)}"

    def _write(self, rank: int) -> tuple[list[FileRecord], str | None]:
        """Write this rank's files, and read them back for their checksums; or why that failed."""
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
            self._plan.state = {}  # the copies, which need as much memory as what they are of

    def _publish_on_rank_zero(self, records: Sequence[FileRecord], failure: str | None) -> str | None:
        """Publish if all ranks have written; why it failed otherwise, alike on all ranks.

        A rank that has failed takes part too: the others would wait for it until the deadline.
        """
        mine = json.dumps([failure, [astuple(record) for record in records]]).encode()
        answers = [json.loads(part) for part in all_gather_bytes(mine, group=self._group)]
        verdict = None
        if group_rank(self._group) == 0:
            found = next((failure for failure, _ in answers if failure is not None), None)
            if found is None:
                try:
                    self._publish([FileRecord(*entry) for _, part in answers for entry in part])
                except CheckpointError as error:
                    found = str(error)
            verdict = json.dumps(found).encode()
        answer: str | None = json.loads(broadcast_bytes(verdict, src_rank=0, group=self._group))
        return answer


def plan_save(chunks: Sequence[nn.Module], optimizer: MegatronOptimizer, folder: Path) -> SavePlan:
    """Copy weights and optimizer state to the CPU, and have Megatron plan who writes what; training may then go on.

    Collectives: those of `optimizer_shards`; Megatron's check that every part is written once (world).

    Args:
        chunks: the virtual stages of this rank.
        optimizer: of the chunks.
        folder: that all ranks see; exists and is empty.

    Returns:
        What this rank writes.

    Raises:
        CheckpointError: the disk does not take what Megatron writes here, on rank 0.
    """
    shards = model_shards(chunks)
    optimizer_state = optimizer_shards(optimizer, shards_by_parameter(shards), filled=True)
    staged = _staged({**shards, "optimizer": optimizer_state})
    try:
        plan: SavePlan = dist_checkpointing.save(staged, str(folder), _PlanOnly(*FORMAT), async_sharded_save=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder} cannot be written: {_first_line(error)}.") from error
    return plan


def write_format(folder: Path) -> None:
    """Name Megatron's format in a checkpoint that all ranks have written. Rank 0.

    Args:
        folder: the checkpoint.

    Raises:
        CheckpointError: the disk does not take it.
    """
    with disk_errors(folder, "written"):
        save_config(CheckpointingConfig(*FORMAT), str(folder))


def load_checkpoint(
    chunks: Sequence[nn.Module], optimizer: MegatronOptimizer, folder: Path, *, adam_steps: int
) -> None:
    """Fill weights and optimizer state of this rank, whatever layout wrote them.

    Collectives: those of Megatron's load (world), then of `set_optimizer_state`.

    Args:
        chunks: the virtual stages of this rank; written in place.
        optimizer: of the chunks; written in place.
        folder: a checkpoint whose files have been verified.
        adam_steps: steps that Adam had made.

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
        deadline_s: seconds after which a rank that waits for another in it gives up.

    Returns:
        The group, over gloo.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=deadline_s))

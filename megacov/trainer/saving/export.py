"""Exports the policy of a checkpoint to a model folder in Hugging Face format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from megacov.checkpoint.store import CheckpointStore
from megacov.config import load_config
from megacov.errors import CheckpointError, ConfigError, DataError
from megacov.megatron.export import read_hf_weights
from megacov.megatron.model import DTYPES
from megacov.megatron.model_shape import read_model_shape
from megacov.megatron.process_groups import join_job, lay_out_ranks, leave_job
from megacov.parallel.groups import ParallelGroups
from megacov.plan.model_sizes import read_model_values
from megacov.trainer.saving.export_check import check_as_transformers
from megacov.trainer.saving.restore import GoodCheckpoint, find_good_checkpoint, read_good_checkpoint
from megacov.weight_sync.snapshot import write_snapshot

_MAX_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class Exported:
    """An export: its step, its dtype, and the bytes of all its tensors."""

    step: int
    dtype: str
    num_bytes: int


def export_run(run: Path, out: Path, *, step: int | None, dtype: str | None) -> Exported:
    """Write the policy of a run as a model folder with configuration, tokenizer and generation settings.

    It verifies every file of the checkpoint first, and compares the new folder with what transformers expects there
    before the folder appears under its name.

    Args:
        run: run folder.
        out: model folder to write; it must be empty or not exist.
        step: step of the checkpoint; None for the newest intact one.
        dtype: "float32" or "bfloat16"; None for the dtype of the model that the run began with.

    Returns:
        The step, dtype and size of the export.

    Raises:
        ConfigError: the run's configuration cannot be read.
        DataError: the run or its model cannot be read, or `out` is not empty.
        CheckpointError: there is no such checkpoint, it is damaged, or transformers would not load what it gives.
        WeightSyncError: the weights cannot be written.
    """
    config = load_config(run / "config.yaml", [])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} already exists: name another folder, or remove it.")
    shape = read_model_shape(config.model.path)
    dtype = dtype or _source_dtype(config.model.path)
    with _alone() as groups:
        store = CheckpointStore(run)
        good = find_good_checkpoint(store, groups) if step is None else _checkpoint_of(store, step, groups)
        saved_dtype = good.about["config"]["model"]["dtype"]
        weights = read_hf_weights(good.folder, shape, dtype=saved_dtype, groups=groups)
        converted = ((name, tensor.to(DTYPES[dtype])) for name, tensor in weights)
        written = write_snapshot(
            out,
            converted,
            source_model=config.model.path,
            max_shard_bytes=_MAX_SHARD_BYTES,
            check=lambda fresh: check_as_transformers(fresh, dtype=DTYPES[dtype]),
        )
    return Exported(good.about["step"], dtype, written.num_bytes)


def _source_dtype(model: Path) -> str:
    from transformers import AutoConfig

    read_model_values(model / "config.json")  # transformers would raise on values that are refused here
    dtype = AutoConfig.from_pretrained(model, trust_remote_code=False).dtype or torch.float32
    name = next((name for name, each in DTYPES.items() if each == dtype), None)
    if name is None:
        raise ConfigError(f"{model} has weights in {dtype}: choose --dtype {' or '.join(DTYPES)}.")
    return name


def _checkpoint_of(store: CheckpointStore, step: int, groups: ParallelGroups) -> GoodCheckpoint:
    folder = store.path(step)
    if not folder.is_dir():
        existing = ", ".join(path.name for path in store.find().candidates) or "none"
        raise CheckpointError(f"{folder} does not exist; {store.folder} holds {existing}.")
    good = read_good_checkpoint(folder, groups)
    if isinstance(good, str):
        raise CheckpointError(f"checkpoint {folder.name} is damaged: {good}")
    return good


@contextmanager
def _alone() -> Iterator[ParallelGroups]:
    """A job of only this process, on the CPU."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="megacov-export-") as folder:
        init_method = f"file://{folder}/store"
        join_job(backend="gloo", timeout_s=60.0, rank=0, local_rank=0, world_size=1, init_method=init_method)
        try:
            yield lay_out_ranks(tensor=1, pipeline=1, timeout_s=60.0, control_timeout_s=60.0, seed=0)
        finally:
            leave_job()

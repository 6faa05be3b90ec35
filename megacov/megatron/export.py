"""Reads the weights of a checkpoint by Hugging Face name, one parameter at a time, in one process without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megacov.errors import CheckpointError
from megacov.megatron.checkpoint import model_shards, shards_by_parameter
from megacov.megatron.model import ModelSettings, build_model
from megacov.megatron.model_shape import ModelShape
from megacov.megatron.weight_table import weight_rules
from megacov.megatron.weights import named_shards, unwrap
from megacov.parallel.groups import ParallelGroups


@torch.no_grad()
def read_hf_weights(
    folder: Path, shape: ModelShape, *, dtype: str, groups: ParallelGroups
) -> Iterator[tuple[str, Tensor]]:
    """Read the policy from a checkpoint, whatever layout wrote it. Holds one parameter at a time.

    A model on torch's meta device, which takes no memory, maps parameters to parts of files.

    Args:
        folder: checkpoint with verified files.
        shape: sizes of the model.
        dtype: "float32" or "bfloat16", the dtype of the weights in the checkpoint.
        groups: groups of a job of one process.

    Yields:
        (name, full tensor on the CPU).

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    assert groups.world_size == 1, "one process reads them all"
    settings = ModelSettings(dtype=dtype, vocab_divisible_by=1, transformer_engine="off")
    with torch.device("meta"):
        chunks = build_model(shape, settings, groups, transformer_engine=False)
    parameters, places = named_shards(chunks), shards_by_parameter(model_shards(chunks))
    checkpoint = _Checkpoint(folder)
    for rule in weight_rules(shape, padded_vocab_size=unwrap(chunks[0]).vocab_size):
        parameter = next(parameters[name] for name in rule.names if name in parameters)
        weight = checkpoint.read(places[id(parameter)])
        tensors = rule.layout.merge([weight], [size for _, size in rule.sources])
        for (name, _), tensor in zip(rule.sources, tensors, strict=True):
            yield name, tensor.contiguous()


class _Slices(DefaultLoadPlanner):
    """Makes torch's reader fill a tensor with part of one in the checkpoint. Megatron would load all layers at once."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        where = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self._target[tuple(slice(start, start + length) for start, length in where)]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing to do: `resolve_tensor` returned a view of the target."""


class _Checkpoint:
    """A checkpoint with its metadata already read."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._reader = folder, FileSystemReader(folder)
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def read(self, place: Any) -> Tensor:
        """Read a parameter, given its ShardedTensor or a factory that splits it into several."""
        if isinstance(place, ShardedTensorFactory):
            whole: Tensor = place.merge_fn([self.read(part) for part in place.build()])
            return whole
        lead = (1,) * place.prepend_axis_num
        target = torch.zeros(*lead, *place.local_shape, dtype=place.dtype, device="cpu")
        chunk = ChunkStorageMetadata(torch.Size(place.global_offset), target.shape)
        stored = self._metadata.state_dict_metadata.get(place.key)
        if not isinstance(stored, TensorStorageMetadata):
            raise CheckpointError(f"{self._folder} holds no {place.key}: it is of another model.")
        items = create_read_items_for_chunk_list(place.key, stored, [chunk])
        self._reader.read_data(LoadPlan(items), _Slices(target)).wait()
        return target.reshape(place.local_shape)

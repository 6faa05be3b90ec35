"""Loads and exports weights by Hugging Face name, in any tensor x pipeline x expert layout.

For each Megatron parameter, the table of a family (`families/`) lists the Hugging Face tensors it consists of and how
they are split over tensor-parallel ranks. Loading and exporting use the same table in opposite directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megacov.errors import DataError
from megacov.megatron.families.family import WeightRule
from megacov.megatron.families.registry import FAMILIES
from megacov.megatron.hf_folder import HfFolder
from megacov.megatron.model_shape import ModelShape
from megacov.megatron.weight_table import EMBEDDING, OUTPUT, owner_of_expert, owner_stage, weight_rules
from megacov.parallel.collectives import all_gather
from megacov.parallel.groups import ParallelGroups

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"  # as Hugging Face names them
_IN_LAYER = re.compile(r"decoder\.layers\.(?P<layer>\d+)\.(?P<rest>.*)")
# Megatron's own experts are modules in a list; Transformer Engine's are numbered weights of one module.
_OF_EXPERT = re.compile(r"(mlp\.experts\.(?:local_experts\.|linear_fc[12]\.weight))(\d+)")


def unwrap(model: nn.Module) -> Any:
    """The GPTModel inside Megatron's wrappers, if any; Any, because Megatron has no types."""
    inner: Any = model
    while hasattr(inner, "module"):
        inner = inner.module
    return inner


def named_shards(chunks: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """Parameters of this rank by global Megatron name.

    Megatron numbers the layers of a chunk and the experts of a rank from 0. A layer's `layer_number` (from 1) is its
    place in the whole model.

    Args:
        chunks: the virtual stages of this rank: GPTModels, possibly wrapped.

    Returns:
        name -> parameter.
    """
    return {
        _global_name(name, model.decoder.layers): parameter
        for model in map(unwrap, chunks)
        for name, parameter in model.named_parameters()
    }


def own_shards(chunks: Sequence[nn.Module], shape: ModelShape) -> dict[str, Tensor]:
    """Parameters of this rank by the first of the names that its rule gives them; no communication, and no copy.

    Args:
        chunks: the virtual stages of this rank, possibly wrapped.
        shape: sizes of the model.

    Returns:
        name -> this rank's part of the parameter, without gradient.
    """
    shards = named_shards(chunks)
    rules = weight_rules(shape, padded_vocab_size=unwrap(chunks[0]).vocab_size)
    return {rule.names[0]: shards[name].detach() for rule in rules for name in rule.names if name in shards}


def _global_name(name: str, layers: Sequence[Any]) -> str:
    in_layer = _IN_LAYER.fullmatch(name)
    if in_layer is None:
        return name
    layer = layers[int(in_layer["layer"])]
    rest = _OF_EXPERT.sub(lambda match: f"{match[1]}{layer.mlp.local_expert_indices[int(match[2])]}", in_layer["rest"])
    return f"decoder.layers.{layer.layer_number - 1}.{rest}"


def check_hf_weights(folder: str | Path, shape: ModelShape) -> None:
    """Check that a folder holds exactly the tensors of a model, in their shapes.

    Reads only the headers of its files; if embeddings are tied and the folder holds a head too, it compares the two.

    Args:
        folder: folder with one or more .safetensors files.
        shape: sizes of the model.

    Raises:
        DataError: names a missing, extra or mis-shaped tensor, or a head that is not the embedding it is tied to.
    """
    rules = weight_rules(shape, padded_vocab_size=shape.vocab_size)
    expected = {name: size for rule in rules for name, size in rule.sources}
    ignored = FAMILIES[shape.family].ignored
    optional = {f"model.layers.{layer}.{name}" for layer in range(shape.num_layers) for name in ignored}
    if shape.tie_word_embeddings:
        optional.add(_HEAD)
    source = HfFolder(Path(folder))
    source.check(expected, optional=optional)
    if shape.tie_word_embeddings and _HEAD in source and not source.are_equal(_EMBEDDING, _HEAD):
        raise DataError(
            f"{folder}: tie_word_embeddings is true in config.json, and {_HEAD} differs from {_EMBEDDING}; "
            f"transformers would keep both: set tie_word_embeddings to false there, or remove {_HEAD}."
        )


@torch.no_grad()
def load_hf_weights(chunks: Sequence[nn.Module], folder: str | Path, shape: ModelShape, groups: ParallelGroups) -> None:
    """Load this rank's shard from a Hugging Face folder, one parameter after another.

    No communication: every rank reads the parts of tensors that it keeps, and holds one parameter beside its shard.
    Call `check_hf_weights` first, on one rank, to learn whether the folder is complete.

    Args:
        chunks: the virtual stages of this rank, possibly wrapped; written in place.
        folder: folder with one or more .safetensors files.
        shape: sizes of the model.
        groups: process groups of this rank; the tensor-parallel one decides which parts it reads.

    Raises:
        DataError: names a tensor that cannot be read.
    """
    shards, source = named_shards(chunks), HfFolder(Path(folder))
    filled: set[str] = set()
    for rule in weight_rules(shape, padded_vocab_size=unwrap(chunks[0]).vocab_size):
        names = [name for name in rule.names if name in shards]
        if rule.names == (EMBEDDING,) and shape.tie_word_embeddings and OUTPUT in shards:
            # With tied embeddings and several stages, Megatron's last stage holds a copy of the embedding.
            names.append(OUTPUT)
        if names:
            _fill([shards[name] for name in names], rule, source, groups)
        filled.update(names)
    unfilled = shards.keys() - filled
    assert not unfilled, f"the table of {shape.family} has no rule for {', '.join(sorted(unfilled))}"


def _fill(parameters: Sequence[nn.Parameter], rule: WeightRule, source: HfFolder, groups: ParallelGroups) -> None:
    shard = _read_shard(rule, source, *_tensor_place(rule, groups))
    for parameter in parameters:
        assert parameter.shape == shard.shape, f"{rule.names[0]}: {parameter.shape} against {shard.shape}"
        parameter.copy_(shard)


def _tensor_place(rule: WeightRule, groups: ParallelGroups) -> tuple[int, int]:
    """Rank and size of the group that the tensors are split over; an expert is never split."""
    return (groups.tp_rank, groups.tp_size) if rule.expert is None else (0, 1)


def _read_shard(rule: WeightRule, source: HfFolder, rank: int, num_ranks: int) -> Tensor:
    layout, parts = rule.layout, []
    for name, size in rule.sources:
        start, stop = layout.part_range(size, rank, num_ranks)
        parts.append(source.read(name, dim=layout.dim, start=start, stop=stop))
    return layout.shard(parts, num_ranks)


@torch.no_grad()
def gather_hf_weights(
    chunks: Sequence[nn.Module], shape: ModelShape, groups: ParallelGroups
) -> Iterator[tuple[str, Tensor]]:
    """The whole model's weights by Hugging Face name, parameter by parameter.

    Every rank of replica 0, of the weights or of the experts, must iterate to the end; only global rank 0 receives
    tensors. Other replicas hold the same weights and return at once.

    Collectives: for each parameter in table order, tp_group of the owning stage: all-gather of the shard, unless every
    rank holds it whole; for an expert instead, ep_group of the owning stage: broadcast from its owner; then pp_group of
    tensor-parallel rank 0: broadcast of each full tensor from the owning stage.

    Args:
        chunks: the virtual stages of this rank, possibly wrapped.
        shape: sizes of the model.
        groups: process groups of this rank.

    Yields:
        (name, full tensor on the model's device and in its dtype, its own copy) on global rank 0.
    """
    if groups.replica_rank != 0 and groups.expert_replica_rank != 0:
        return
    shards = named_shards(chunks)
    any_shard = next(iter(shards.values()))
    # The lead rank of each stage sends the gathered tensors to the first stage.
    is_lead = groups.replica_rank == groups.tp_rank == 0
    for rule in weight_rules(shape, padded_vocab_size=unwrap(chunks[0]).vocab_size):
        owner = owner_stage(rule, shape, pipeline=groups.pp_size, virtual_pipeline=len(chunks))
        tensors: list[Tensor] = []
        if (
            owner == groups.pp_rank
            and (groups.replica_rank if rule.expert is None else groups.expert_replica_rank) == 0
        ):
            gathered = _gather_shards(rule, shards, shape, groups, like=any_shard)
            tensors = rule.layout.merge(gathered, [size for _, size in rule.sources])
        if not is_lead:
            continue
        for i, (name, size) in enumerate(rule.sources):
            tensor = (
                tensors[i].contiguous()
                if tensors
                else torch.empty(size, dtype=any_shard.dtype, device=any_shard.device)
            )
            if owner != 0:
                assert groups.pp is not None
                dist.broadcast(tensor, dist.get_global_rank(groups.pp, owner), group=groups.pp)
            if groups.pp_rank == 0:
                yield name, tensor


def _gather_shards(
    rule: WeightRule, shards: dict[str, nn.Parameter], shape: ModelShape, groups: ParallelGroups, *, like: Tensor
) -> list[Tensor]:
    """The shards of a parameter of this stage, in rank order; this rank's own shard is copied."""
    own = next((shards[name].detach().contiguous() for name in rule.names if name in shards), None)
    owner = owner_of_expert(rule, shape, expert_parallel=groups.ep_size)
    if owner is None:
        assert own is not None
        # Copied even if nothing is gathered, because the next optimizer step must not change a yielded tensor.
        return [own.clone()] if rule.layout.dim is None else list(all_gather(own, group=groups.tp))
    if own is None:
        parts = [torch.empty(size, dtype=like.dtype, device="meta") for _, size in rule.sources]
        own = torch.empty_like(rule.layout.shard(parts, 1), device=like.device)
    whole = own.clone()
    if groups.ep is not None and groups.ep_size > 1:
        dist.broadcast(whole, dist.get_global_rank(groups.ep, owner), group=groups.ep)
    return [whole]

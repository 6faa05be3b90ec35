"""Weights by their Hugging Face names, into and out of any tensor x pipeline layout.

The table of a family (`families/`) says, for each Megatron parameter, which Hugging Face tensors it is made of and how
they are laid over tensor-parallel ranks; loading and exporting are the two directions of the same table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megacov.megatron.families.family import WeightRule
from megacov.megatron.families.registry import FAMILIES
from megacov.megatron.hf_folder import HfFolder
from megacov.megatron.model_shape import ModelShape
from megacov.megatron.weight_table import EMBEDDING, OUTPUT, owner_of_expert, owner_stage, weight_rules
from megacov.parallel.collectives import all_gather
from megacov.parallel.groups import ParallelGroups

_IN_LAYER = re.compile(r"decoder\.layers\.(?P<layer>\d+)\.(?P<rest>.*)")
# Megatron's own experts are modules in a list; Transformer Engine's are numbered weights of one module.
_OF_EXPERT = re.compile(r"(mlp\.experts\.(?:local_experts\.|linear_fc[12]\.weight))(\d+)")


def unwrap(model: nn.Module) -> Any:
    """The GPTModel inside Megatron's wrappers.

    Args:
        model: a GPTModel, in DistributedDataParallel or not.

    Returns:
        The GPTModel; Any, because Megatron has no types.
    """
    inner: Any = model
    while hasattr(inner, "module"):
        inner = inner.module
    return inner


def named_shards(chunks: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """Parameters of this rank by their global Megatron name.

    Megatron numbers the layers of a chunk from 0; `layer_number` (from 1) is the place in the whole model. So it does
    with the experts of a rank.

    Args:
        chunks: GPTModels, possibly wrapped: the virtual stages of this rank.

    Returns:
        name -> parameter.
    """
    return {
        _global_name(name, model.decoder.layers): parameter
        for model in map(unwrap, chunks)
        for name, parameter in model.named_parameters()
    }


def _global_name(name: str, layers: Sequence[Any]) -> str:
    found = _IN_LAYER.fullmatch(name)
    if found is None:
        return name
    layer = layers[int(found["layer"])]
    rest = _OF_EXPERT.sub(lambda match: f"{match[1]}{layer.mlp.local_expert_indices[int(match[2])]}", found["rest"])
    return f"decoder.layers.{layer.layer_number - 1}.{rest}"


def check_hf_weights(folder: str | Path, shape: ModelShape) -> None:
    """Whether a folder holds exactly the tensors of a model, in their shapes. Reads the headers of its files only.

    Args:
        folder: with one or more .safetensors files.
        shape: sizes of the model.

    Raises:
        DataError: a missing, extra or mis-shaped tensor, named.
    """
    rules = weight_rules(shape, padded_vocab_size=shape.vocab_size)
    expected = {name: size for rule in rules for name, size in rule.sources}
    ignored = FAMILIES[shape.family].ignored
    optional = {f"model.layers.{layer}.{name}" for layer in range(shape.num_layers) for name in ignored}
    if shape.tie_word_embeddings:
        optional.add("lm_head.weight")
    HfFolder(Path(folder)).check(expected, optional=optional)


@torch.no_grad()
def load_hf_weights(chunks: Sequence[nn.Module], folder: str | Path, shape: ModelShape, groups: ParallelGroups) -> None:
    """Fill this rank's shard from a Hugging Face folder, one parameter after another.

    No communication: every rank reads the parts of tensors that it keeps, and holds one parameter beside its shard.
    `check_hf_weights` says beforehand, on one rank, whether they are all there.

    Args:
        chunks: the virtual stages of this rank, possibly wrapped; written in place.
        folder: with one or more .safetensors files.
        shape: sizes of the model.
        groups: read for this rank's place in the tensor-parallel group.

    Raises:
        DataError: a tensor that cannot be read, named.
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
    """Rank and size of the group that the tensors are cut for; an expert is never cut."""
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
    anything. Other replicas hold the same weights and return at once.

    Collectives: for each parameter in table order, tp_group of the owning stage: all-gather of the shard, unless every
    rank holds it whole; or, of an expert, ep_group of the owning stage: broadcast from its owner; then pp_group of
    tensor-parallel rank 0: broadcast of each full tensor from the owning stage.

    Args:
        chunks: the virtual stages of this rank, possibly wrapped.
        shape: sizes of the model.
        groups: of this rank.

    Yields:
        (name, full tensor on the model's device and in its dtype, its own copy) on global rank 0.
    """
    if groups.replica_rank != 0 and groups.expert_replica_rank != 0:
        return
    shards = named_shards(chunks)
    some = next(iter(shards.values()))
    # The first rank of a stage has what the others gather, and hands it to the first stage.
    leads = groups.replica_rank == groups.tp_rank == 0
    for rule in weight_rules(shape, padded_vocab_size=unwrap(chunks[0]).vocab_size):
        owner = owner_stage(rule, shape, pipeline=groups.pp_size, virtual_pipeline=len(chunks))
        tensors: list[Tensor] = []
        if (
            owner == groups.pp_rank
            and (groups.replica_rank if rule.expert is None else groups.expert_replica_rank) == 0
        ):
            gathered = _gather_shards(rule, shards, shape, groups, like=some)
            tensors = rule.layout.merge(gathered, [size for _, size in rule.sources])
        if not leads:
            continue
        for i, (name, size) in enumerate(rule.sources):
            tensor = tensors[i].contiguous() if tensors else torch.empty(size, dtype=some.dtype, device=some.device)
            if owner != 0:
                assert groups.pp is not None
                dist.broadcast(tensor, dist.get_global_rank(groups.pp, owner), group=groups.pp)
            if groups.pp_rank == 0:
                yield name, tensor


def _gather_shards(
    rule: WeightRule, shards: dict[str, nn.Parameter], shape: ModelShape, groups: ParallelGroups, *, like: Tensor
) -> list[Tensor]:
    """The shards of a parameter of this stage, in the order of the ranks that hold them; copies of this rank's own."""
    own = next((shards[name].detach().contiguous() for name in rule.names if name in shards), None)
    owner = owner_of_expert(rule, shape, expert_parallel=groups.ep_size)
    if owner is None:
        assert own is not None
        # A copy even where nothing is gathered: what was yielded must not change with the next update.
        return [own.clone()] if rule.layout.dim is None else list(all_gather(own, group=groups.tp))
    if own is None:
        parts = [torch.empty(size, dtype=like.dtype, device="meta") for _, size in rule.sources]
        own = torch.empty_like(rule.layout.shard(parts, 1), device=like.device)
    whole = own.clone()
    if groups.ep is not None and groups.ep_size > 1:
        dist.broadcast(whole, dist.get_global_rank(groups.ep, owner), group=groups.ep)
    return [whole]

"""Weights by their Hugging Face names, into and out of any tensor x pipeline layout.

The table of a family (`families/`) says, for each Megatron parameter, which Hugging Face tensors it is made of and how
they are laid over tensor-parallel ranks; loading and exporting are the two directions of the same table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megacov.megatron.families.family import WeightRule
from megacov.megatron.families.layout import REPLICATED, vocab_layout
from megacov.megatron.families.registry import FAMILIES
from megacov.megatron.hf_folder import HfFolder
from megacov.megatron.model_shape import ModelShape
from megacov.parallel.collectives import all_gather
from megacov.parallel.groups import ParallelGroups


def _layer_rules(shape: ModelShape, layer: int) -> Iterator[WeightRule]:
    for block in FAMILIES[shape.family].layer:
        for rule in block(shape):
            names = tuple(f"decoder.layers.{layer}.{name}" for name in rule.names)
            sources = tuple((f"model.layers.{layer}.{name}", size) for name, size in rule.sources)
            yield replace(rule, names=names, sources=sources, layer=layer)


def weight_rules(shape: ModelShape, *, padded_vocab_size: int) -> list[WeightRule]:
    """The table of a whole model.

    Args:
        shape: sizes of the model.
        padded_vocab_size: vocabulary rows over all tensor-parallel ranks.

    Returns:
        A rule for every parameter of the whole model, in the order of its layers.
    """
    vocab, rows = vocab_layout(padded_vocab_size), (shape.vocab_size, shape.hidden_size)
    rules = [WeightRule(("embedding.word_embeddings.weight",), (("model.embed_tokens.weight", rows),), vocab)]
    for layer in range(shape.num_layers):
        rules += _layer_rules(shape, layer)
    norm = (("model.norm.weight", (shape.hidden_size,)),)
    rules.append(WeightRule(("decoder.final_layernorm.weight",), norm, REPLICATED, on_last_stage=True))
    if not shape.tie_word_embeddings:
        head = (("lm_head.weight", rows),)
        rules.append(WeightRule(("output_layer.weight",), head, vocab, on_last_stage=True))
    return rules


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

    Megatron numbers the layers of a chunk from 0; `layer_number` (from 1) is the place in the whole model.

    Args:
        chunks: GPTModels, possibly wrapped: the virtual stages of this rank.

    Returns:
        name -> parameter.
    """
    shards = {}
    for model in map(unwrap, chunks):
        numbers = [layer.layer_number - 1 for layer in model.decoder.layers]
        for name, parameter in model.named_parameters():
            shards[re.sub(r"(?<=decoder\.layers\.)\d+", lambda m: str(numbers[int(m[0])]), name)] = parameter  # noqa: B023
    return shards


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
    shards = named_shards(chunks)
    rules = weight_rules(shape, padded_vocab_size=unwrap(chunks[0]).vocab_size)
    source, unfilled = HfFolder(Path(folder)), dict(shards)
    for rule in rules:
        names = [name for name in rule.names if name in shards]
        if rule.layer is None and rule.names[0].startswith("embedding") and shape.tie_word_embeddings:
            # With tied embeddings and several stages, Megatron's last stage holds a copy of the embedding.
            names += [name for name in ("output_layer.weight",) if name in shards]
        if not names:
            continue
        shard = _read_shard(rule, source, groups.tp_rank, groups.tp_size)
        for name in names:
            parameter = unfilled.pop(name)
            assert parameter.shape == shard.shape, f"{name}: {parameter.shape} against {shard.shape}"
            parameter.copy_(shard)
    assert not unfilled, f"the table of {shape.family} has no rule for {', '.join(unfilled)}"


def _read_shard(rule: WeightRule, source: HfFolder, rank: int, num_ranks: int) -> Tensor:
    layout, parts = rule.layout, []
    for name, size in rule.sources:
        start, stop = layout.part_range(size, rank, num_ranks)
        parts.append(source.read(name, dim=layout.dim, start=start, stop=stop))
    return layout.shard(parts, num_ranks)


def _owner_stage(rule: WeightRule, layers_per_chunk: int, pp_size: int) -> int:
    if rule.layer is None:
        return pp_size - 1 if rule.on_last_stage else 0
    return rule.layer // layers_per_chunk % pp_size


@torch.no_grad()
def gather_hf_weights(
    chunks: Sequence[nn.Module], shape: ModelShape, groups: ParallelGroups
) -> Iterator[tuple[str, Tensor]]:
    """The whole model's weights by Hugging Face name, parameter by parameter.

    Every rank of replica 0 must iterate to the end; only global rank 0 receives anything. Other replicas (data- and
    context-parallel) hold the same weights and return at once.

    Collectives: for each parameter in table order, tp_group of the owning stage: all-gather of the shard, unless every
    rank holds it whole; pp_group of tensor-parallel rank 0: broadcast of each full tensor from the owning stage.

    Args:
        chunks: the virtual stages of this rank, possibly wrapped.
        shape: sizes of the model.
        groups: of this rank.

    Yields:
        (name, full tensor on the CPU, in the model's dtype, its own copy) on global rank 0.
    """
    if groups.replica_rank != 0:
        return
    shards = named_shards(chunks)
    layers_per_chunk = shape.num_layers // (groups.pp_size * len(chunks))
    some = next(iter(shards.values()))
    for rule in weight_rules(shape, padded_vocab_size=unwrap(chunks[0]).vocab_size):
        owner = _owner_stage(rule, layers_per_chunk, groups.pp_size)
        tensors: list[Tensor] = []
        if owner == groups.pp_rank:
            shard = next(shards[name] for name in rule.names if name in shards).detach().contiguous()
            # A copy even where nothing is gathered: what was yielded must not change with the next update.
            gathered = [shard.clone()] if rule.layout.dim is None else list(all_gather(shard, group=groups.tp))
            tensors = rule.layout.merge(gathered, [size for _, size in rule.sources])
        if groups.tp_rank != 0:
            continue
        for i, (name, size) in enumerate(rule.sources):
            tensor = tensors[i].contiguous() if tensors else torch.empty(size, dtype=some.dtype, device=some.device)
            if owner != 0:
                assert groups.pp is not None
                dist.broadcast(tensor, dist.get_global_rank(groups.pp, owner), group=groups.pp)
            if groups.pp_rank == 0:
                yield name, tensor.cpu()

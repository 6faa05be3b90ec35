"""Weights by their Hugging Face names, into and out of any tensor x pipeline layout.

One table of rules says, for each Megatron parameter, which Hugging Face tensors it is made of and how they are laid
over tensor-parallel ranks; loading and exporting are the two directions of the same table.
Shape legend: h hidden, f feed-forward, n query heads, g key/value heads, d head size, v vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megacov.megatron.hf_folder import HfFolder
from megacov.megatron.model_shape import ModelShape
from megacov.parallel.collectives import all_gather
from megacov.parallel.groups import ParallelGroups

Split = Callable[[Sequence[Tensor], int, int], Tensor]
Merge = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Layout:
    """How full tensors become the shard of one tensor-parallel rank, and back.

    split(tensors, rank, size) -> this rank's shard; merge(shards in rank order) -> the full tensors.
    """

    split: Split
    merge: Merge


@dataclass(frozen=True)
class WeightRule:
    """One Megatron parameter.

    names: its possible names (Transformer Engine fuses a norm into the linear after it).
    sources: the Hugging Face tensors it holds, as (name, full shape).
    layer: global layer index; None for the embedding (first stage) and what follows the last layer (last stage).
    on_last_stage: where `layer` is None.
    """

    names: tuple[str, ...]
    sources: tuple[tuple[str, tuple[int, ...]], ...]
    layout: Layout
    layer: int | None = None
    on_last_stage: bool = False


REPLICATED = Layout(lambda tensors, rank, size: tensors[0], lambda shards: [shards[0]])
COLUMN = Layout(lambda tensors, rank, size: tensors[0].chunk(size, 0)[rank], lambda shards: [torch.cat(list(shards))])
ROW = Layout(lambda tensors, rank, size: tensors[0].chunk(size, 1)[rank], lambda shards: [torch.cat(list(shards), 1)])


def _split_gate_up(tensors: Sequence[Tensor], rank: int, size: int) -> Tensor:
    # Megatron's fc1 holds [gate; up] of its own columns on every rank, not a slice of the full [gate; up].
    return torch.cat([tensor.chunk(size, 0)[rank] for tensor in tensors])


def _merge_gate_up(shards: Sequence[Tensor]) -> list[Tensor]:
    halves = [shard.chunk(2, 0) for shard in shards]
    return [torch.cat([half[i] for half in halves]) for i in range(2)]


GATE_UP = Layout(_split_gate_up, _merge_gate_up)


def vocab_layout(vocab_size: int, padded_size: int) -> Layout:
    """Rows over ranks, padded with zero rows at the end.

    Args:
        vocab_size: rows of the Hugging Face tensor.
        padded_size: rows over all ranks.

    Returns:
        The layout.
    """

    def split(tensors: Sequence[Tensor], rank: int, size: int) -> Tensor:
        padded = nn.functional.pad(tensors[0], (0, 0, 0, padded_size - vocab_size))
        return padded.chunk(size, 0)[rank]

    return Layout(split, lambda shards: [torch.cat(list(shards))[:vocab_size]])


def qkv_layout(shape: ModelShape) -> Layout:
    """Queries, keys and values interleaved by key/value group: [g, (n/g + 2) * d, ...], groups over ranks.

    Args:
        shape: sizes of the model.

    Returns:
        The layout, for weights [.., h] and biases alike.
    """
    groups, d = shape.num_key_value_heads, shape.head_dim
    per_group = shape.num_attention_heads // groups

    def split(tensors: Sequence[Tensor], rank: int, size: int) -> Tensor:
        blocks = [tensor.reshape(groups, -1, d, *tensor.shape[1:]) for tensor in tensors]
        fused = torch.cat(blocks, dim=1).reshape(-1, *tensors[0].shape[1:])
        return fused.chunk(size, 0)[rank]

    def merge(shards: Sequence[Tensor]) -> list[Tensor]:
        fused = torch.cat(list(shards))
        blocks = fused.reshape(groups, per_group + 2, d, *fused.shape[1:])
        return [block.reshape(-1, *fused.shape[1:]) for block in blocks.split([per_group, 1, 1], dim=1)]

    return Layout(split, merge)


def _layer_rules(shape: ModelShape, layer: int) -> list[WeightRule]:
    hf, own = f"model.layers.{layer}", f"decoder.layers.{layer}"
    h, f = shape.hidden_size, shape.ffn_hidden_size
    query, key_value = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    qkv_rows = (("q", query), ("k", key_value), ("v", key_value))
    qkv, attn, mlp = qkv_layout(shape), f"{own}.self_attention", f"{own}.mlp"

    def rule(names: tuple[str, ...], layout: Layout, *sources: tuple[str, tuple[int, ...]]) -> WeightRule:
        return WeightRule(names, tuple((f"{hf}.{name}", size) for name, size in sources), layout, layer)

    return [
        rule(
            (f"{own}.input_layernorm.weight", f"{attn}.linear_qkv.layer_norm_weight"),
            REPLICATED,
            ("input_layernorm.weight", (h,)),
        ),
        rule((f"{attn}.linear_qkv.weight",), qkv, *((f"self_attn.{x}_proj.weight", (rows, h)) for x, rows in qkv_rows)),
        rule((f"{attn}.linear_qkv.bias",), qkv, *((f"self_attn.{x}_proj.bias", (rows,)) for x, rows in qkv_rows)),
        rule((f"{attn}.linear_proj.weight",), ROW, ("self_attn.o_proj.weight", (h, query))),
        rule(
            (f"{own}.pre_mlp_layernorm.weight", f"{mlp}.linear_fc1.layer_norm_weight"),
            REPLICATED,
            ("post_attention_layernorm.weight", (h,)),
        ),
        rule((f"{mlp}.linear_fc1.weight",), GATE_UP, ("mlp.gate_proj.weight", (f, h)), ("mlp.up_proj.weight", (f, h))),
        rule((f"{mlp}.linear_fc2.weight",), ROW, ("mlp.down_proj.weight", (h, f))),
    ]


def weight_rules(shape: ModelShape, *, padded_vocab_size: int) -> list[WeightRule]:
    """The table of the Qwen2 family.

    Args:
        shape: sizes of the model.
        padded_vocab_size: vocabulary rows over all tensor-parallel ranks.

    Returns:
        A rule for every parameter of the whole model, in the order of its layers.
    """
    vocab, rows = vocab_layout(shape.vocab_size, padded_vocab_size), (shape.vocab_size, shape.hidden_size)
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
    HfFolder(Path(folder)).check(expected, optional={"lm_head.weight"} if shape.tie_word_embeddings else set())


@torch.no_grad()
def load_hf_weights(chunks: Sequence[nn.Module], folder: str | Path, shape: ModelShape, groups: ParallelGroups) -> None:
    """Fill this rank's shard from a Hugging Face folder. No communication: every rank reads the tensors it needs.

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
    source = HfFolder(Path(folder))
    for rule in rules:
        names = [name for name in rule.names if name in shards]
        if rule.layer is None and rule.names[0].startswith("embedding") and shape.tie_word_embeddings:
            # With tied embeddings and several stages, Megatron's last stage holds a copy of the embedding.
            names += [name for name in ("output_layer.weight",) if name in shards]
        if not names:
            continue
        shard = rule.layout.split([source.read(name) for name, _ in rule.sources], groups.tp_rank, groups.tp_size)
        for name in names:
            assert shards[name].shape == shard.shape, f"{name}: {shards[name].shape} against {shard.shape}"
            shards[name].copy_(shard)


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

    Collectives: for each parameter in table order, tp_group of the owning stage: all-gather of the shard;
    pp_group of tensor-parallel rank 0: broadcast of each full tensor from the owning stage.

    Args:
        chunks: the virtual stages of this rank, possibly wrapped.
        shape: sizes of the model.
        groups: of this rank.

    Yields:
        (name, full tensor on the CPU, in the model's dtype) on global rank 0.
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
            tensors = rule.layout.merge(list(all_gather(shard, group=groups.tp)))
        if groups.tp_rank != 0:
            continue
        for i, (name, size) in enumerate(rule.sources):
            tensor = tensors[i].contiguous() if tensors else torch.empty(size, dtype=some.dtype, device=some.device)
            if owner != 0:
                assert groups.pp is not None
                dist.broadcast(tensor, dist.get_global_rank(groups.pp, owner), group=groups.pp)
            if groups.pp_rank == 0:
                yield name, tensor.cpu()

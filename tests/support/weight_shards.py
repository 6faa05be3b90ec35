"""The weights of a small model as the trainer's ranks and an SGLang server's ranks hold them, each cut on its own.

The trainer's shards are made by the tables that load a model; a server's by the rules of SGLang 0.5.23, written
down here a second time with torch's own functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.megatron.families.shape import Experts, ModelShape
from megacov.megatron.weight_table import owner_of_expert, owner_stage, weight_rules
from megacov.plan import Layout, ModelSizes
from megacov.plan.weight_parts import ServerLayout


def model_shape(family: str, *, keys: int = 4, tied: bool = False, vocab: int = 199) -> ModelShape:
    """Sizes of a small model, of which no two are equal."""
    return ModelShape(
        family=family,
        num_layers=4,
        hidden_size=24,
        ffn_hidden_size=64,
        num_attention_heads=8,
        num_key_value_heads=keys,
        head_dim=6,
        vocab_size=vocab,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        tie_word_embeddings=tied,
        experts=Experts(8, 2, 16, True) if family == "qwen3_moe" else None,
        qkv_bias=family == "qwen2",
        qk_norm=family.startswith("qwen3"),
    )


def sizes_of(shape: ModelShape) -> ModelSizes:
    """The same sizes, as the plan takes them."""
    experts = shape.experts
    return ModelSizes(
        **{name: getattr(shape, name) for name in ModelSizes.__dataclass_fields__ if hasattr(shape, name)},
        num_experts=experts.num_experts if experts else 0,
        experts_per_token=experts.num_per_token if experts else 0,
        expert_hidden_size=experts.ffn_hidden_size if experts else 0,
    )


def hf_tensors(shape: ModelShape) -> dict[str, Tensor]:
    """Tensors by Hugging Face name; no two elements of a model are equal."""
    sources = {
        name: size for rule in weight_rules(shape, padded_vocab_size=shape.vocab_size) for name, size in rule.sources
    }
    counts = [torch.Size(size).numel() for size in sources.values()]
    values = torch.arange(1, sum(counts) + 1, dtype=torch.int32).split(counts)
    return {name: part.reshape(size) for part, (name, size) in zip(values, sources.items(), strict=True)}


def trainer_shards(
    hf: dict[str, Tensor], shape: ModelShape, layout: Layout, *, vocab_divisible_by: int
) -> dict[int, dict[str, Tensor]]:
    """Parameters of every rank by the first of Megatron's names, cut as loading cuts them."""
    multiple = vocab_divisible_by * layout.tensor
    rules = weight_rules(shape, padded_vocab_size=-(-shape.vocab_size // multiple) * multiple)
    stages = {"pipeline": layout.pipeline, "virtual_pipeline": layout.virtual_pipeline}
    shards: dict[int, dict[str, Tensor]] = {}
    for rank in range(layout.world_size):
        stage, in_stage = divmod(rank, layout.ranks_per_stage)
        shards[rank] = {}
        for rule in rules:
            expert_rank = owner_of_expert(rule, shape, expert_parallel=layout.expert)
            if owner_stage(rule, shape, **stages) != stage or expert_rank not in (None, in_stage % layout.expert):
                continue
            place = (in_stage % layout.tensor, layout.tensor) if rule.expert is None else (0, 1)
            parts = []
            for name, size in rule.sources:
                start, stop = rule.layout.part_range(size, *place)
                dim = rule.layout.dim
                parts.append(hf[name] if dim is None else hf[name].narrow(dim, start, stop - start))
            shards[rank][rule.names[0]] = rule.layout.shard(parts, place[1])
    return shards


def server_shards(hf: dict[str, Tensor], shape: ModelShape, servers: ServerLayout, rank: int) -> dict[str, Tensor]:
    """Parameters of a server's rank by SGLang's name; padded rows are 0."""
    ranks = servers.tensor
    embedding = hf["model.embed_tokens.weight"]
    found = {"model.embed_tokens.weight": _padded(embedding, ranks)[rank], "model.norm.weight": hf["model.norm.weight"]}
    if not shape.tie_word_embeddings or shape.experts is not None:
        found["lm_head.weight"] = _padded(hf.get("lm_head.weight", embedding), ranks)[rank]
    for layer in range(shape.num_layers):
        start = f"model.layers.{layer}."
        own = {name.removeprefix(start): tensor for name, tensor in hf.items() if name.startswith(start)}
        for kind in ("weight", "bias") if shape.qkv_bias else ("weight",):
            q, k, v = (own.pop(f"self_attn.{x}_proj.{kind}") for x in "qkv")
            copies = max(1, ranks // shape.num_key_value_heads)
            k, v = (x.chunk(ranks // copies)[rank // copies] for x in (k, v))
            found[f"{start}self_attn.qkv_proj.{kind}"] = torch.cat([q.chunk(ranks)[rank], k, v])
        found[f"{start}self_attn.o_proj.weight"] = own.pop("self_attn.o_proj.weight").chunk(ranks, dim=1)[rank]
        feed_forward = _dense(own, ranks, rank) if shape.experts is None else _experts(own, shape, servers, rank)
        # Norms and the router are whole.
        found |= {start + name: tensor for name, tensor in (feed_forward | own).items()}
    return found


def _padded(vocabulary: Tensor, ranks: int) -> tuple[Tensor, ...]:
    rows = -(-len(vocabulary) // 64) * 64
    if rows % ranks:
        rows = -(-len(vocabulary) // (64 * ranks)) * 64 * ranks
    return torch.cat([vocabulary, vocabulary.new_zeros(rows - len(vocabulary), vocabulary.shape[1])]).chunk(ranks)


def _dense(own: dict[str, Tensor], ranks: int, rank: int) -> dict[str, Tensor]:
    gate, up = (own.pop(f"mlp.{x}_proj.weight").chunk(ranks)[rank] for x in ("gate", "up"))
    down = own.pop("mlp.down_proj.weight").chunk(ranks, dim=1)[rank]
    return {"mlp.gate_up_proj.weight": torch.cat([gate, up]), "mlp.down_proj.weight": down}


def _experts(own: dict[str, Tensor], shape: ModelShape, servers: ServerLayout, rank: int) -> dict[str, Tensor]:
    assert shape.experts is not None
    members = servers.tensor // servers.expert
    group, member = divmod(rank, members)
    gates, ups, downs = (
        [own.pop(f"mlp.experts.{e}.{x}_proj.weight") for e in range(shape.experts.num_experts)]
        for x in ("gate", "up", "down")
    )
    first = torch.stack(
        [torch.cat([g.chunk(members)[member], u.chunk(members)[member]]) for g, u in zip(gates, ups, strict=True)]
    )
    second = torch.stack([down.chunk(members, dim=1)[member] for down in downs])
    return {
        "mlp.experts.w13_weight": first.chunk(servers.expert)[group],
        "mlp.experts.w2_weight": second.chunk(servers.expert)[group],
    }

"""Parts of a layer, from which families are composed.

Shape legend: h hidden, f feed-forward, q rows of all query heads, kv rows of all key (or value) heads, d head size.
"""

from __future__ import annotations

from megacov.megatron.families.family import WeightRule
from megacov.megatron.families.layout import GATE_UP, REPLICATED, ROW, Layout, qkv_layout
from megacov.megatron.families.shape import ModelShape


def attention(shape: ModelShape) -> list[WeightRule]:
    """Rules for the norm before attention, the fused projection into it, and the one out of it."""
    h, q = shape.hidden_size, shape.num_attention_heads * shape.head_dim
    norm = ("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight")
    return [
        WeightRule(norm, (("input_layernorm.weight", (h,)),), REPLICATED),
        _fused_qkv(shape, "weight", h),
        WeightRule(("self_attention.linear_proj.weight",), (("self_attn.o_proj.weight", (h, q)),), ROW),
    ]


def qkv_bias(shape: ModelShape) -> list[WeightRule]:
    """Rule for the biases of queries, keys and values."""
    return [_fused_qkv(shape, "bias")]


def qk_norm(shape: ModelShape) -> list[WeightRule]:
    """Rules for the norms of queries and keys, which all heads share."""
    return [
        WeightRule(
            (f"self_attention.{x}_layernorm.weight",), ((f"self_attn.{x}_norm.weight", (shape.head_dim,)),), REPLICATED
        )
        for x in ("q", "k")
    ]


def swiglu(shape: ModelShape) -> list[WeightRule]:
    """Rules for the feed-forward part and the norm before it."""
    h, f = shape.hidden_size, shape.ffn_hidden_size
    norm = ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")
    return [
        WeightRule(norm, (("post_attention_layernorm.weight", (h,)),), REPLICATED),
        WeightRule(
            ("mlp.linear_fc1.weight",), (("mlp.gate_proj.weight", (f, h)), ("mlp.up_proj.weight", (f, h))), GATE_UP
        ),
        WeightRule(("mlp.linear_fc2.weight",), (("mlp.down_proj.weight", (h, f)),), ROW),
    ]


def experts(shape: ModelShape) -> list[WeightRule]:
    """Rules for the experts, their router, and the norm before them."""
    assert shape.experts is not None
    h, f, num_experts = shape.hidden_size, shape.experts.ffn_hidden_size, shape.experts.num_experts
    rules = [
        WeightRule(("pre_mlp_layernorm.weight",), (("post_attention_layernorm.weight", (h,)),), REPLICATED),
        WeightRule(("mlp.router.weight",), (("mlp.gate.weight", (num_experts, h)),), REPLICATED),
    ]
    for e in range(num_experts):
        first = ((f"mlp.experts.{e}.gate_proj.weight", (f, h)), (f"mlp.experts.{e}.up_proj.weight", (f, h)))
        rules += [
            WeightRule(_expert_names(e, 1), first, GATE_UP, expert=e),
            WeightRule(_expert_names(e, 2), ((f"mlp.experts.{e}.down_proj.weight", (h, f)),), ROW, expert=e),
        ]
    return rules


def _expert_names(expert: int, linear: int) -> tuple[str, ...]:
    own, transformer_engines = f"local_experts.{expert}.linear_fc{linear}.weight", f"linear_fc{linear}.weight{expert}"
    return (f"mlp.experts.{own}", f"mlp.experts.{transformer_engines}")


def _fused_qkv(shape: ModelShape, kind: str, *columns: int) -> WeightRule:
    d, n, g = shape.head_dim, shape.num_attention_heads, shape.num_key_value_heads
    rows = {"q": n * d, "k": g * d, "v": g * d}
    sources = tuple((f"self_attn.{x}_proj.{kind}", (size, *columns)) for x, size in rows.items())
    layout: Layout = qkv_layout(d, n // g)
    return WeightRule((f"self_attention.linear_qkv.{kind}",), sources, layout)

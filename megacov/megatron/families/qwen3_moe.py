"""Qwen3 with experts in every layer, such as Qwen3-30B-A3B."""

from __future__ import annotations

from typing import Any

from megacov.megatron.families.blocks import attention, experts, qk_norm
from megacov.megatron.families.family import Family
from megacov.megatron.families.hf_config import read_sizes, refuse_unless
from megacov.megatron.families.shape import Experts, ModelShape


def read(hf: Any) -> ModelShape:
    """Read the sizes of a Qwen3-MoE model; raises ConfigError for layers without experts, and for biases."""
    refuse_unless(hf, attention_bias=False, decoder_sparse_step=1, mlp_only_layers=[])
    of_a_layer = Experts(
        num_experts=hf.num_experts,
        num_per_token=hf.num_experts_per_tok,
        ffn_hidden_size=hf.moe_intermediate_size,
        normalizes_weights=bool(hf.norm_topk_prob),
    )
    return read_sizes(hf, qk_norm=True, experts=of_a_layer)


QWEN3_MOE = Family("qwen3_moe", read, (attention, qk_norm, experts))

"""Llama 2 and 3, and models with the same architecture, such as SmolLM2."""

from __future__ import annotations

from typing import Any

from megacov.megatron.families.blocks import attention, swiglu
from megacov.megatron.families.family import Family
from megacov.megatron.families.hf_config import read_sizes, refuse_unless
from megacov.megatron.families.shape import ModelShape


def read(hf: Any) -> ModelShape:
    """Read the sizes of a Llama model; raises ConfigError for biases, which no published Llama has."""
    refuse_unless(hf, attention_bias=False, mlp_bias=False)
    return read_sizes(hf)


LLAMA = Family("llama", read, (attention, swiglu), ignored=("self_attn.rotary_emb.inv_freq",))

"""Qwen2 and Qwen2.5: queries, keys and values have biases."""

from __future__ import annotations

from typing import Any

from megacov.megatron.families.blocks import attention, qkv_bias, swiglu
from megacov.megatron.families.family import Family
from megacov.megatron.families.hf_config import read_sizes
from megacov.megatron.families.shape import ModelShape


def read(hf: Any) -> ModelShape:
    """Read the sizes of a Qwen2 model."""
    return read_sizes(hf, qkv_bias=True)


QWEN2 = Family("qwen2", read, (attention, qkv_bias, swiglu))

"""Dense Qwen3: queries and keys are normalised head by head."""

from __future__ import annotations

from typing import Any

from megacov.megatron.families.blocks import attention, qk_norm, swiglu
from megacov.megatron.families.family import Family
from megacov.megatron.families.hf_config import read_sizes, refuse_unless
from megacov.megatron.families.shape import ModelShape


def read(hf: Any) -> ModelShape:
    """Read the sizes of a Qwen3 model; raises ConfigError for biases, which no published Qwen3 has."""
    refuse_unless(hf, attention_bias=False)
    return read_sizes(hf, qk_norm=True)


QWEN3 = Family("qwen3", read, (attention, qk_norm, swiglu))

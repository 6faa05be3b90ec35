"""The supported families, by `model_type`."""

from __future__ import annotations

from megacov.megatron.families.family import Family
from megacov.megatron.families.llama import LLAMA
from megacov.megatron.families.mistral import MISTRAL
from megacov.megatron.families.qwen2 import QWEN2
from megacov.megatron.families.qwen3 import QWEN3
from megacov.megatron.families.qwen3_moe import QWEN3_MOE

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, QWEN3_MOE)}

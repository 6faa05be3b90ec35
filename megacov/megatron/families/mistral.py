"""Mistral 7B and later models with its architecture; early ones have a sliding window."""

from __future__ import annotations

from megacov.megatron.families.blocks import attention, swiglu
from megacov.megatron.families.family import Family
from megacov.megatron.families.hf_config import read_sizes

MISTRAL = Family("mistral", read_sizes, (attention, swiglu))

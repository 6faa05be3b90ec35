"""Sizes of a model, from its `config.json` alone.

The trainer reads the same file through transformers, which takes seconds to import, and checks more of it
(`megacov.megatron.model_shape`). A test compares the two readers for every family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacov.errors import ConfigError, DataError
from megacov.plan.quantization import refuse_quantized

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")
_QKV_BIAS = ("qwen2",)
_QK_NORM = ("qwen3", "qwen3_moe")
_NEEDED = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
_OF_EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a Hugging Face model.

    sliding_window: number of keys that a query of any layer sees, its own included; None for all keys.
    num_experts: number of experts that replace the feed-forward part of every layer; 0 in a dense model.
    experts_per_token, expert_hidden_size: number of experts for each token, and the width of an expert.
    """

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    sliding_window: int | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    expert_hidden_size: int = 0

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.family in _QKV_BIAS

    @property
    def has_qk_norm(self) -> bool:
        """Whether queries and keys are normalised head by head."""
        return self.family in _QK_NORM

    @property
    def query_size(self) -> int:
        """Channels of all query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Channels of all key heads, and of all value heads."""
        return self.num_key_value_heads * self.head_dim


def read_model_sizes(path: Path) -> ModelSizes:
    """Read the sizes of a model.

    Args:
        path: `config.json` of the model.

    Returns:
        The sizes.

    Raises:
        DataError: the file cannot be read, or a size is missing.
        ConfigError: megacov does not train this family of models, or the model is quantized.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give the config.json of a model.") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): give the config.json of a model.") from error
    family = values.get("model_type") if isinstance(values, dict) else None
    if family not in FAMILIES:
        raise ConfigError(f"{path} is of a {family} model; supported families: {', '.join(FAMILIES)}.")
    refuse_quantized(values, config_file=path)
    if "num_local_experts" in values:
        values["num_experts"] = values["num_local_experts"]  # the name that transformers 5 writes
    needed = (*_NEEDED, *(_OF_EXPERTS if family == "qwen3_moe" else ()))
    missing = [name for name in needed if not isinstance(values.get(name), int)]
    if missing:
        raise DataError(f"{path} has no number for {missing[0]}: give the config.json of the model itself.")
    return _sizes(values)


def _sizes(values: Mapping[str, Any]) -> ModelSizes:
    heads = values["num_attention_heads"]
    has_experts = values["model_type"] == "qwen3_moe"
    return ModelSizes(
        family=values["model_type"],
        num_layers=values["num_hidden_layers"],
        hidden_size=values["hidden_size"],
        ffn_hidden_size=values["intermediate_size"],
        num_attention_heads=heads,
        num_key_value_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or values["hidden_size"] // heads,
        vocab_size=values["vocab_size"],
        max_position_embeddings=values["max_position_embeddings"],
        tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
        sliding_window=_sliding_window(values),
        num_experts=values["num_experts"] if has_experts else 0,
        experts_per_token=values["num_experts_per_tok"] if has_experts else 0,
        expert_hidden_size=values["moe_intermediate_size"] if has_experts else 0,
    )


def _sliding_window(values: Mapping[str, Any]) -> int | None:
    """The window of any layer, as transformers reads it: Mistral only names it, Qwen must also turn it on."""
    kinds = values.get("layer_types")
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    is_named = values["model_type"] == "mistral"
    is_on = values.get("use_sliding_window") and values.get("max_window_layers", 0) < values["num_hidden_layers"]
    window: int | None = values.get("sliding_window") if is_named or is_on else None
    return window

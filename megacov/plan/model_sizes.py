"""Sizes of a model, from its `config.json` alone.

The trainer reads the same file through transformers, which takes seconds to import, and checks more of it
(`megacov.megatron.model_shape`). A test compares the two readers for every family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacov.config.messages import show
from megacov.errors import ConfigError, DataError
from megacov.json_text import JsonError, read_json
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
# Largest sizes, far above those of any model: transformers makes lists of them before anything else could refuse them.
_LARGEST = {
    "num_hidden_layers": 10_000,
    "hidden_size": 2**24,
    "intermediate_size": 2**24,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**28,
    "max_position_embeddings": 2**31 - 1,
    "sliding_window": 2**31 - 1,
}
_LARGEST_OF_EXPERTS = {
    "num_experts": 2**16,
    "num_local_experts": 2**16,
    "num_experts_per_tok": 2**16,
    "moe_intermediate_size": 2**24,
}
_MAY_BE_NULL = ("num_key_value_heads", "head_dim", "sliding_window")
_NUMBERS = ("rms_norm_eps", "rope_theta")
_OF_ROPE = (
    "factor",
    "partial_rotary_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
_LARGEST_NUMBER = 1e30
_ROPE = '{"rope_type": "default", "rope_theta": 10000.0}'
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
    values = read_model_values(path)
    family = values.get("model_type")
    if family not in FAMILIES:
        named = family[:60] if isinstance(family, str) else show(family)
        raise ConfigError(f"{path} is of a {named} model; supported families: {', '.join(FAMILIES)}.")
    refuse_quantized(values, config_file=path)
    if "num_local_experts" in values:
        values["num_experts"] = values["num_local_experts"]  # the name that transformers 5 writes
    _check_complete(path, values, needed=(*_NEEDED, *(_OF_EXPERTS if family == "qwen3_moe" else ())))
    return _sizes(values)


def read_model_values(path: Path) -> dict[str, Any]:
    """Read a `config.json`, and check those values that all trainable families share, as far as they are given.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        DataError: the file is no JSON object; a size is not a whole number above 0, or is too large for any model;
            rope_theta or another number is not one.
    """
    try:
        values = read_json(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give the config.json of a model.") from error
    except JsonError as error:
        raise DataError(f"{path} is not JSON ({error}): give the config.json of a model.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {show(values)} and no object: give the config.json of a model.")
    if values.get("model_type") in FAMILIES:  # others are refused in any case
        _check_sizes(path, values)
        _check_rope(path, values)
    return values


def _check_rope(path: Path, values: Mapping[str, Any]) -> None:
    for section in ("rope_parameters", "rope_scaling"):
        rope = values.get(section) or {}
        if not isinstance(rope, dict):
            raise DataError(f"{path}: {section} is {show(rope)}: it must be an object, such as {_ROPE}.")
        _check_numbers(path, {f"{section}.{name}": rope[name] for name in _OF_ROPE if rope.get(name) is not None})
        _check_numbers(path, {f"{section}.rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})
    _check_numbers(path, {name: values[name] for name in _NUMBERS if name in values})
    kinds = values.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise DataError(f"{path}: layer_types is {show(kinds)}: it must be a list of names.")


def _check_sizes(path: Path, values: Mapping[str, Any]) -> None:
    is_moe = values.get("model_type") == "qwen3_moe"
    for name, largest in {**_LARGEST, **(_LARGEST_OF_EXPERTS if is_moe else {})}.items():
        value = values.get(name)
        is_size = type(value) is int and 1 <= value <= largest
        if name in values and not is_size and not (value is None and name in _MAY_BE_NULL):
            raise DataError(f"{path}: {name} is {show(value)}: it must be a whole number from 1 to {largest}.")


def _check_numbers(path: Path, numbers: Mapping[str, Any]) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST_NUMBER:
            raise DataError(f"{path}: {name} is {show(value)}: it must be a number above 0.")


def _check_complete(path: Path, values: Mapping[str, Any], *, needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in values]
    if missing:
        raise DataError(f"{path} has no number for {missing[0]}: give the config.json of the model itself.")
    heads = values["num_attention_heads"]
    if not values.get("head_dim") and values["hidden_size"] < heads:
        raise DataError(
            f"{path}: hidden_size is {values['hidden_size']} and num_attention_heads {heads}: a head has no channel."
        )
    layers = values.get("max_window_layers", 0)
    if type(layers) is not int:
        raise DataError(f"{path}: max_window_layers is {show(layers)}: it must be a whole number.")


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

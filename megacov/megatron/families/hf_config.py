"""Reads the parts of a model's transformers configuration that families share."""

from __future__ import annotations

import math
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from megacov.errors import ConfigError, DataError
from megacov.megatron.families.shape import ModelShape, RopeScaling

# transformers computes with values of a config.json before it has checked all of them, and raises what comes of that.
UNUSABLE_VALUES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
SCALED_ROPE = ("linear", "llama3", "yarn")


def read_sizes(hf: Any, **features: Any) -> ModelShape:
    """Read the sizes that have the same names in every family.

    Args:
        hf: transformers' configuration.
        **features: fields of `ModelShape` that the family sets itself.

    Returns:
        The sizes.

    Raises:
        ConfigError: the activation, the rotary embedding or the name of the weights' file is not supported.
        DataError: a parameter of the rotary embedding is missing.
    """
    refuse_unless(hf, hidden_act="silu", transformers_weights=None)
    rope: dict[str, Any] = dict(hf.rope_parameters or {})
    return ModelShape(
        family=hf.model_type,
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        ffn_hidden_size=hf.intermediate_size,
        num_attention_heads=hf.num_attention_heads,
        num_key_value_heads=hf.num_key_value_heads,
        head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        vocab_size=hf.vocab_size,
        max_position_embeddings=hf.max_position_embeddings,
        rms_norm_eps=hf.rms_norm_eps,
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        rope_scaling=_read_rope_scaling(hf, rope),
        sliding_window=_read_sliding_window(hf),
        tie_word_embeddings=bool(hf.tie_word_embeddings),
        **features,
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters of it; its class if it has none."""
    return next((line.strip()[:200] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def refuse_unless(hf: Any, **values: Any) -> None:
    """Check that fields of a configuration have the only supported values.

    Args:
        hf: transformers' configuration.
        **values: supported value by field; a field that the configuration lacks passes.

    Raises:
        ConfigError: names the field and both values.
    """
    for name, supported in values.items():
        value = getattr(hf, name, supported)
        if value != supported:
            raise ConfigError(
                f"model.path {hf.name_or_path}: {name} is {value!r} in its config.json, and {hf.model_type} models can "
                f"be trained with {supported!r} only: take another model."
            )


def _read_rope_scaling(hf: Any, rope: dict[str, Any]) -> RopeScaling | None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = rope.get("rope_type", "default")
    if kind != "default" and kind not in SCALED_ROPE:
        raise ConfigError(
            f"model.path {hf.name_or_path} scales its rotary embedding by {kind!r}, whose frequencies depend on the "
            f"length of a sequence; take a model with one of default, {', '.join(SCALED_ROPE)}."
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(
            f"model.path {hf.name_or_path} turns a fraction of {rope['partial_rotary_factor']} of a head's channels "
            "(partial_rotary_factor), and only 1 can be trained: take another model."
        )
    if kind == "default":
        return None
    try:
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](hf, torch.device("cpu"))
    except KeyError as error:
        raise DataError(
            f"model.path {hf.name_or_path}: rope_parameters in its config.json are of type {kind} and have no {error}."
        ) from error
    if not (bool(frequencies.isfinite().all()) and math.isfinite(factor)):
        raise DataError(f"model.path {hf.name_or_path}: rope_parameters in its config.json give no finite frequencies.")
    return RopeScaling(tuple(frequencies.tolist()), float(factor))


def _read_sliding_window(hf: Any) -> int | None:
    """The window of any layer. Every layer attends in full to a sequence that is no longer."""
    kinds = getattr(hf, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    window: int | None = getattr(hf, "sliding_window", None)
    return window

"""Sizes of a Hugging Face model, and whether Megatron can lay it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacov.config.rules import check_model
from megacov.errors import ConfigError, DataError

FAMILIES = ("qwen2",)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Hugging Face model that Megatron needs. `rope_theta` is the base period of the rotary embedding."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool


def read_model_shape(path: str | Path) -> ModelShape:
    """Read `config.json` of a Hugging Face model folder.

    Args:
        path: the folder.

    Returns:
        Its sizes.

    Raises:
        DataError: no such folder, or no readable configuration in it.
        ConfigError: a model family or a feature that cannot be laid into Megatron yet.
    """
    from transformers import AutoConfig

    if not Path(path, "config.json").is_file():
        raise DataError(f"model.path {path} has no config.json: give a Hugging Face model folder.")
    try:
        hf = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise DataError(f"model.path {path}: config.json cannot be read ({error}).") from error
    if hf.model_type not in FAMILIES:
        raise ConfigError(f"model.path {path} is a {hf.model_type} model; supported families: {', '.join(FAMILIES)}.")
    rope: dict[str, Any] = dict(getattr(hf, "rope_parameters", None) or {})
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"model.path {path} scales its rotary embedding ({rope['rope_type']}); only default works.")
    if getattr(hf, "use_sliding_window", False):
        raise ConfigError(f"model.path {path} uses sliding-window attention; set use_sliding_window to false in it.")
    return ModelShape(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        ffn_hidden_size=hf.intermediate_size,
        num_attention_heads=hf.num_attention_heads,
        num_key_value_heads=hf.num_key_value_heads,
        head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        vocab_size=hf.vocab_size,
        max_position_embeddings=hf.max_position_embeddings,
        rms_norm_eps=hf.rms_norm_eps,
        rope_theta=float(rope.get("rope_theta", getattr(hf, "rope_theta", 10000.0))),
        tie_word_embeddings=bool(hf.tie_word_embeddings),
    )


def check_split(shape: ModelShape, *, tensor: int, pipeline: int, virtual_pipeline: int) -> None:
    """Whether the model can be split over tensor- and pipeline-parallel ranks.

    Args:
        shape: sizes of the model.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        virtual_pipeline: runs of layers on each pipeline rank.

    Raises:
        ConfigError: heads, layers or feed-forward size cannot be split that way.
    """
    check_model(
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        num_layers=shape.num_layers,
        ffn_hidden_size=shape.ffn_hidden_size,
        tensor=tensor,
        pipeline=pipeline,
        virtual_pipeline=virtual_pipeline,
    )

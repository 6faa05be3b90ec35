"""Sizes and features of a model that Megatron needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeScaling:
    """A rotary embedding stretched to longer sequences.

    inverse_frequencies: one for each pair of a head's channels. [radians per position]
    attention_factor: factor of both queries and keys.
    """

    inverse_frequencies: tuple[float, ...]
    attention_factor: float


@dataclass(frozen=True)
class Experts:
    """The experts of a layer.

    num_experts, num_per_token: number of experts in the layer, and number that each token uses.
    ffn_hidden_size: hidden size of one expert.
    normalizes_weights: whether the weights of a token's experts sum to 1.
    """

    num_experts: int
    num_per_token: int
    ffn_hidden_size: int
    normalizes_weights: bool


@dataclass(frozen=True)
class ModelShape:
    """Sizes and features of a Hugging Face model.

    family: `model_type`, by which `registry.py` finds the weight table.
    rope_theta: base period of the rotary embedding.
    rope_scaling: stretching of the rotary embedding; None if it is not stretched.
    sliding_window: number of keys that a query sees, its own included; None for all of them.
    experts: experts that replace the feed-forward part of every layer; None in a dense model.
    qkv_bias: whether queries, keys and values have a bias.
    qk_norm: whether queries and keys are normalised head by head.
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
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    experts: Experts | None = None
    qkv_bias: bool = False
    qk_norm: bool = False

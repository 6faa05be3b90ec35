"""Memory of one GPU of an SGLang server: weights, keys and values, and how many sequences these are of.

SGLang takes `mem-fraction-static` of the memory that it finds for weights and for keys and values together, and leaves
the rest to CUDA graphs and the activations of a prefill (`sglang/srt/arg_groups/memory_hook.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from megacov.plan.layout import Layout
from megacov.plan.model_sizes import ModelSizes
from megacov.plan.parameters import count_parameters

STATIC_FRACTION = 0.83
"""Assumed where `mem-fraction-static` is not set: SGLang 0.5 leaves about 13.5 GiB of an 80 GiB GPU."""

# SGLang pads the vocabulary to a multiple of this times its tensor-parallel size.
_VOCAB_DIVISIBLE_BY = 64


@dataclass(frozen=True)
class ServerMemory:
    """One GPU of a server, in bytes.

    rest: left for CUDA graphs and activations.
    token_bytes: keys and values of one token.
    tokens: that a server keeps keys and values of.
    sequences: of the greatest length that fit into them.
    """

    weights: int
    key_value: int
    rest: int
    token_bytes: int
    tokens: int
    sequences: int


def plan_server(
    sizes: ModelSizes,
    *,
    tensor: int,
    gpu_bytes: int,
    static_fraction: float,
    value_bytes: int,
    longest: int,
) -> ServerMemory:
    """Plan one GPU.

    Args:
        sizes: of the model.
        tensor: GPUs of a server.
        gpu_bytes: memory of a GPU.
        static_fraction: of it, for weights, keys and values.
        value_bytes: of a weight, a key and a value.
        longest: tokens of the longest sequence, its prompt included.

    Returns:
        The plan; `key_value` is negative where not even the weights fit.
    """
    count = count_parameters(sizes, Layout(tensor=tensor), stage=0, vocab_divisible_by=_VOCAB_DIVISIBLE_BY)
    # Its experts are cut over the ranks of a server, unlike the trainer's.
    weights = (count.dense + count.expert // tensor) * value_bytes
    static = int(gpu_bytes * static_fraction)
    key_heads = max(1, sizes.num_key_value_heads // tensor)
    token_bytes = 2 * sizes.num_layers * key_heads * sizes.head_dim * value_bytes
    tokens = max(0, static - weights) // token_bytes
    return ServerMemory(
        weights=weights,
        key_value=static - weights,
        rest=gpu_bytes - static,
        token_bytes=token_bytes,
        tokens=tokens,
        sequences=tokens // longest,
    )

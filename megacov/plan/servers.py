"""Memory of one GPU of an SGLang server: weights, keys and values, and the number of sequences that fit.

SGLang uses a share `mem-fraction-static` of the GPU's memory for weights, keys and values together, and leaves the rest
to CUDA graphs and the activations of a prefill (`sglang/srt/arg_groups/memory_hook.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from megacov.plan.layout import Layout
from megacov.plan.model_sizes import ModelSizes
from megacov.plan.parameters import count_parameters
from megacov.plan.weight_parts import server_vocab_rows

STATIC_FRACTION = 0.83
"""Assumed if `mem-fraction-static` is not set: SGLang 0.5 leaves about 13.5 GiB of an 80 GiB GPU."""

SGLANG_SPARE_TOKENS = 2
"""Tokens of the context that SGLang 0.5.23 never fills: in a context of 64, a prompt of 4 gets at most 58 tokens."""


@dataclass(frozen=True)
class ServerMemory:
    """One GPU of a server, in bytes.

    rest: memory left for CUDA graphs and activations.
    token_bytes: size of the keys and values of one token.
    tokens: number of tokens whose keys and values a server can hold.
    sequences: number of sequences of the greatest length that have so many tokens.
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
        sizes: sizes of the model.
        tensor: number of GPUs of a server.
        gpu_bytes: memory of a GPU.
        static_fraction: share of that memory for weights, keys and values.
        value_bytes: bytes of a weight, a key or a value.
        longest: number of tokens of the longest sequence, prompt included.

    Returns:
        The plan; `key_value` is negative if not even the weights fit.
    """
    rows = server_vocab_rows(sizes.vocab_size, tensor)
    count = count_parameters(sizes, Layout(tensor=tensor), stage=0, vocab_divisible_by=rows)
    # A server splits experts over its ranks; the trainer does not.
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

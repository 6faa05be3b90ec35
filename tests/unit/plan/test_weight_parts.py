"""Servers as SGLang starts them: sizes that its ranks can share, and rows that it pads."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from megacov.errors import ConfigError
from megacov.plan.weight_parts import ServerLayout, check_servers, server_vocab_rows
from tests.support.weight_shards import model_shape, sizes_of

LLAMA, MOE = sizes_of(model_shape("llama")), sizes_of(model_shape("qwen3_moe"))


@pytest.mark.parametrize(
    ("vocab", "tensor", "rows"),
    [(16, 1, 64), (16, 2, 32), (151936, 8, 18992), (151936, 16, 9496), (128256, 12, 10688), (129, 4, 48), (65, 3, 64)],
)
def test_the_vocabulary_is_padded_as_sglang_pads_it(vocab: int, tensor: int, rows: int) -> None:
    assert server_vocab_rows(vocab, tensor) == rows


@pytest.mark.parametrize(
    ("heads", "key_heads", "tensor", "starts"),
    [
        (28, 4, 1, True),
        (28, 4, 4, True),
        (28, 4, 28, True),
        (28, 4, 8, False),
        (28, 4, 7, False),
        (28, 4, 14, False),
        (40, 8, 2, True),
        (40, 8, 40, True),
        (40, 8, 3, False),
        (40, 8, 16, False),
        (40, 8, 5, False),
    ],
)
def test_servers_share_heads_as_sglang_asserts(heads: int, key_heads: int, tensor: int, starts: bool) -> None:
    sizes = replace(LLAMA, num_attention_heads=heads, num_key_value_heads=key_heads, ffn_hidden_size=840)
    with nullcontext() if starts else pytest.raises(ConfigError, match=f"tp-size is {tensor} and the model has"):
        check_servers(sizes, ServerLayout(1, tensor))


@pytest.mark.parametrize(
    ("sizes", "servers", "complaint"),
    [
        (replace(LLAMA, ffn_hidden_size=68), ServerLayout(1, 8), "8 GPUs of a server share 68 feed-forward columns"),
        (replace(LLAMA, ffn_hidden_size=72), ServerLayout(1, 8), None),
        (MOE, ServerLayout(1, 4, 3), "ep-size is 3 and tp-size 4"),
        (replace(MOE, num_experts=6), ServerLayout(1, 4, 4), "4 GPUs of a server share 6 experts"),
        (replace(MOE, expert_hidden_size=12), ServerLayout(1, 8), "8 GPUs of a server share 12 columns of an expert"),
        (replace(MOE, expert_hidden_size=12), ServerLayout(1, 8, 2), None),
    ],
)
def test_other_sizes_must_be_divisible_too(sizes, servers: ServerLayout, complaint: str | None) -> None:
    with nullcontext() if complaint is None else pytest.raises(ConfigError, match=complaint):
        check_servers(sizes, servers)

"""Number of parameters that `megacov.megatron` would load on each GPU, counted without loading them.

Megatron splits the vocabulary, attention and feed-forward matrices over tensor-parallel ranks and repeats norms and
routers; an expert is whole on one expert-parallel rank. A test compares every count with
`benchmarks.loading_plan`, which is built on the tables that load the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacov.plan.layout import Layout
from megacov.plan.model_sizes import ModelSizes


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of one GPU.

    dense: parameters outside of experts.
    expert: parameters of experts, whose optimizer state is distributed over other ranks.
    largest: parameters of the largest matrix.
    """

    dense: int
    expert: int
    largest: int

    @property
    def total(self) -> int:
        """All parameters of the GPU."""
        return self.dense + self.expert


def count_parameters(sizes: ModelSizes, layout: Layout, *, stage: int, vocab_divisible_by: int) -> ParameterCount:
    """Count the parameters of a GPU; all tensor-parallel ranks of a pipeline stage hold the same number.

    Args:
        sizes: sizes of the model.
        layout: layout that divides heads, layers and experts evenly.
        stage: pipeline stage, from 0.
        vocab_divisible_by: number of which the rows of a vocabulary shard are a multiple.

    Returns:
        The counts.
    """
    tensor, h = layout.tensor, sizes.hidden_size
    vocab = vocab_rows(sizes, tensor=tensor, vocab_divisible_by=vocab_divisible_by) * h
    num_layers = sizes.num_layers // layout.pipeline
    is_first, is_last = stage == 0, stage == layout.pipeline - 1
    # With tied embeddings, the last of several stages holds a copy; a single stage needs none.
    outputs = 0 if not is_last or (sizes.tie_word_embeddings and is_first) else vocab
    dense = num_layers * _dense_layer(sizes, tensor) + (vocab if is_first else 0) + outputs + (h if is_last else 0)
    expert = num_layers * (sizes.num_experts // layout.expert) * 3 * h * sizes.expert_hidden_size
    return ParameterCount(
        dense, expert, _largest_matrix(sizes, tensor=tensor, vocab=vocab if outputs or is_first else 0)
    )


def vocab_rows(sizes: ModelSizes, *, tensor: int, vocab_divisible_by: int) -> int:
    """Rows of the vocabulary on one tensor-parallel rank, padded to a multiple of `vocab_divisible_by`."""
    multiple = vocab_divisible_by * tensor
    return -(-sizes.vocab_size // multiple) * multiple // tensor


def total_parameters(sizes: ModelSizes) -> int:
    """Number of parameters of the whole model, without padding."""
    return count_parameters(sizes, Layout(), stage=0, vocab_divisible_by=1).total


def _dense_layer(sizes: ModelSizes, tensor: int) -> int:
    """Parameters of one layer on one rank, without experts. A server may repeat a key head on several ranks."""
    h, d = sizes.hidden_size, sizes.head_dim
    queries = sizes.num_attention_heads // tensor * d
    qkv = queries + 2 * max(1, sizes.num_key_value_heads // tensor) * d
    count = qkv * h + queries * h + 2 * h
    if sizes.has_qkv_bias:
        count += qkv
    if sizes.has_qk_norm:
        count += 2 * d
    if sizes.num_experts:
        return count + sizes.num_experts * h
    return count + 3 * h * (sizes.ffn_hidden_size // tensor)


def _largest_matrix(sizes: ModelSizes, *, tensor: int, vocab: int) -> int:
    """Entries of a rank's largest matrix. `vocab` is the number of entries of its vocabulary shard; 0 without one."""
    h = sizes.hidden_size
    feed_forward = 2 * h * (sizes.expert_hidden_size if sizes.num_experts else sizes.ffn_hidden_size // tensor)
    return max(vocab, feed_forward, h * (sizes.query_size + 2 * sizes.key_size) // tensor)

"""How many parameters each GPU holds: what `megacov.megatron` would load there, counted without loading it.

Megatron cuts the vocabulary, attention and feed-forward matrices over tensor-parallel ranks and repeats norms and
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

    dense: all but experts.
    expert: of experts, whose optimizer state is shared out among other ranks.
    largest: of its largest matrix.
    """

    dense: int
    expert: int
    largest: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.dense + self.expert


def count_parameters(sizes: ModelSizes, layout: Layout, *, stage: int, vocab_divisible_by: int) -> ParameterCount:
    """Count what a GPU of a pipeline stage holds; its tensor-parallel ranks hold equally much.

    Args:
        sizes: of the model.
        layout: of the trainer, which divides heads, layers and experts.
        stage: of the pipeline.
        vocab_divisible_by: rows of a vocabulary shard are a multiple of this.

    Returns:
        The counts.
    """
    tensor, h = layout.tensor, sizes.hidden_size
    vocab = vocab_rows(sizes, tensor=tensor, vocab_divisible_by=vocab_divisible_by) * h
    num_layers = sizes.num_layers // layout.pipeline
    is_first, is_last = stage == 0, stage == layout.pipeline - 1
    # With tied embeddings, the last stage of several holds a copy; alone, it is the first as well.
    outputs = 0 if not is_last or (sizes.tie_word_embeddings and is_first) else vocab
    dense = num_layers * _dense_layer(sizes, tensor) + (vocab if is_first else 0) + outputs + (h if is_last else 0)
    expert = num_layers * (sizes.num_experts // layout.expert) * 3 * h * sizes.expert_hidden_size
    return ParameterCount(
        dense, expert, _largest_matrix(sizes, tensor=tensor, vocab=vocab if outputs or is_first else 0)
    )


def vocab_rows(sizes: ModelSizes, *, tensor: int, vocab_divisible_by: int) -> int:
    """Rows of the vocabulary on one tensor-parallel rank, padding included.

    Args:
        sizes: of the model.
        tensor: tensor-parallel size.
        vocab_divisible_by: of which the rows are a multiple.

    Returns:
        The rows.
    """
    multiple = vocab_divisible_by * tensor
    return -(-sizes.vocab_size // multiple) * multiple // tensor


def total_parameters(sizes: ModelSizes) -> int:
    """Parameters of the whole model, without padding.

    Args:
        sizes: of the model.

    Returns:
        The count.
    """
    return count_parameters(sizes, Layout(), stage=0, vocab_divisible_by=1).total


def _dense_layer(sizes: ModelSizes, tensor: int) -> int:
    """Of one layer on one rank, without experts. A server with more ranks than key heads holds each head on several."""
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
    """Entries of the largest matrix of a rank, whose vocabulary shard has so many; 0 where it has none."""
    h = sizes.hidden_size
    feed_forward = 2 * h * (sizes.expert_hidden_size if sizes.num_experts else sizes.ffn_hidden_size // tensor)
    return max(vocab, feed_forward, h * (sizes.query_size + 2 * sizes.key_size) // tensor)

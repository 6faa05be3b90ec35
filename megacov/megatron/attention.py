"""Causal core attention on torch's own kernels: padded or packed sequences, whole or split over ranks.

Under context parallelism a rank holds two chunks of every sequence (`megacov.parallel.zigzag`). It gathers the keys and
values of all ranks, and each of its query chunks attends to the keys up to the chunk's end.

Shape legend: s positions and b sequences of a padded micro-batch, t tokens of a packed one, both on this rank; n query
heads and g key/value heads of this TP rank, d head size; c context-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import MegatronModule, TransformerConfig
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn.attention.bias import causal_lower_right

from megacov.parallel import all_gather, group_rank, group_size, reduce_scatter_sum
from megacov.parallel.zigzag import merge_zigzag, sequence_lengths


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, dropout: float) -> Tensor:
    """Attention of a sequence's last queries to all of its keys; the last query sees every key.

    Gradient: to query, key and value.

    Args:
        query: [s, b, n, d] float; the last s positions.
        key: [s_k, b, g, d] like the query, s_k >= s; each of its heads serves n/g neighbouring query heads.
        value: [s_k, b, g, d] like the query.
        scale: factor of the scores; None for 1/sqrt(d).
        dropout: probability of dropping an attention weight.

    Returns:
        [s, b, n, d] in the dtype of the query.
    """
    s, s_k = query.shape[0], key.shape[0]
    mask: Tensor | None = None
    if s != s_k and query.is_cuda:
        # This lets torch keep flash attention, which takes no mask tensor. Elsewhere torch builds the mask itself.
        mask = causal_lower_right(s, s_k)
    elif s != s_k:
        # `is_causal` would align the mask with the first key.
        mask = torch.ones(s, s_k, dtype=torch.bool, device=query.device).tril(s_k - s)
    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=s == s_k,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return out.permute(2, 0, 1, 3)


def gather_key_value(key: Tensor, value: Tensor, *, cp_group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Keys and values of all context-parallel ranks.

    Collectives: cp_group: all-gather [2, ...]; backward: reduce-scatter [c, 2, ...]. None alone.
    Gradient: every rank's gradient of a key, summed in the dtype of the key, reaches the rank that holds it.

    Args:
        key: [...] float, equal in shape on all ranks.
        value: [...] like the key.
        cp_group: ranks that hold the other parts of the same sequences.

    Returns:
        Keys [c, ...] and values [c, ...] in rank order.
    """
    if group_size(cp_group) == 1:
        return key.unsqueeze(0), value.unsqueeze(0)
    keys, values = _Gather.apply(torch.stack((key, value)), cp_group).unbind(1)
    return keys, values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shard: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return all_gather(shard, group=group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return reduce_scatter_sum(grad, group=ctx.group), None


def zigzag_causal_attention(
    query: Tensor, keys: Tensor, values: Tensor, *, cp_rank: int, scale: float | None, dropout: float
) -> Tensor:
    """Causal attention of the queries that one rank holds to the keys of all ranks.

    Gradient: to query, keys and values.

    Args:
        query: [s, b, n, d] float, in the order of `zigzag_positions`.
        keys: [c, s, b, g, d] like the query, from `gather_key_value`.
        values: [c, s, b, g, d] like the query.
        cp_rank: context-parallel rank that holds the queries.
        scale: factor of the scores; None for 1/sqrt(d).
        dropout: probability of dropping an attention weight.

    Returns:
        [s, b, n, d] in the dtype and order of the query.
    """
    cp_size = keys.shape[0]
    key, value = merge_zigzag(keys), merge_zigzag(values)
    if cp_size == 1:
        return causal_attention(query, key, value, scale=scale, dropout=dropout)
    chunk = query.shape[0] // 2
    ends = (chunk * (cp_rank + 1), chunk * (2 * cp_size - cp_rank))
    parts = [
        causal_attention(part, key[:end], value[:end], scale=scale, dropout=dropout)
        for part, end in zip(query.split(chunk), ends, strict=True)
    ]
    return torch.cat(parts)


def packed_causal_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Sequence[int],
    *,
    cp_rank: int,
    scale: float | None,
    dropout: float,
) -> Tensor:
    """Causal attention within each of several sequences that follow one another.

    Gradient: to query, keys and values; 0 for tokens after the last sequence.

    Args:
        query: [t, n, d] float; each sequence in the order of `zigzag_positions`.
        keys: [c, t, g, d] like the query, from `gather_key_value`.
        values: [c, t, g, d] like the query.
        lengths: tokens of each sequence on one rank; their sum is at most t.
        cp_rank: context-parallel rank that holds the queries.
        scale: factor of the scores; None for 1/sqrt(d).
        dropout: probability of dropping an attention weight.

    Returns:
        [t, n, d] in the dtype and order of the query; 0 for tokens after the last sequence.
    """
    rest = query.shape[0] - sum(lengths)
    assert rest >= 0, f"{query.shape[0]} tokens on this rank, but its sequences have {sum(lengths)}"
    sizes = [*lengths, rest]
    # One split, because separate slices would each need a gradient tensor of full size.
    parts = zip(query.split(sizes), keys.split(sizes, dim=1), values.split(sizes, dim=1), strict=True)
    outputs = []
    for length, (q, k, v) in zip(lengths, parts, strict=False):
        if length > 0:
            batch = (q.unsqueeze(1), k.unsqueeze(2), v.unsqueeze(2))
            out = zigzag_causal_attention(*batch, cp_rank=cp_rank, scale=scale, dropout=dropout)
            outputs.append(out.squeeze(1))
    return torch.cat([*outputs, query.new_zeros(rest, *query.shape[1:])])


class SdpaCoreAttention(MegatronModule):
    """Causal self-attention with grouped queries on `scaled_dot_product_attention`.

    It replaces Megatron's `DotProductAttention`, which writes the [b, n, s, s] scores to memory and refuses packed
    sequences and context parallelism. Padding follows every real position of its sequence, so the causal mask is
    enough to keep it out.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        model_comm_pgs: Any = None,
    ) -> None:
        """Signature of a Megatron core-attention module.

        Args:
            config: source of `attention_dropout` and `context_parallel_size`.
            layer_number: global number from 1; unused.
            attn_mask_type: causal; this module has no other mask.
            attention_type: "self".
            attention_dropout: overrides the configuration's.
            softmax_scale: None for 1/sqrt(d).
            cp_comm_type: how Transformer Engine moves keys between ranks; ignored, because keys are always gathered.
            pg_collection: source of the group `cp`; without one, Megatron's global group is used.
            model_comm_pgs: name of `pg_collection` before megatron-core 0.14.
        """
        super().__init__(config=config)
        assert attn_mask_type.name in ("causal", "padding_causal") and attention_type == "self"
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale
        self.cp_group = _context_parallel_group(model_comm_pgs if pg_collection is None else pg_collection)
        assert group_size(self.cp_group) == config.context_parallel_size, (
            f"context_parallel_size is {config.context_parallel_size}, the group has {group_size(self.cp_group)} ranks"
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend causally, within each sequence.

        Collectives: those of `gather_key_value`. Waits for the device if the boundaries of packed sequences are on it.
        Gradient: to query, key and value.

        Args:
            query: [s, b, n, d] padded, or [t, n, d] packed; float.
            key: [s, b, g, d] or [t, g, d] like the query.
            value: [s, b, g, d] or [t, g, d] like the query.
            attention_mask: ignored; the mask is always causal.
            attn_mask_type: ignored for the same reason.
            attention_bias: None; a bias is not supported.
            packed_seq_params: boundaries of packed sequences in the whole batch, over all context-parallel ranks.

        Returns:
            [s, b, n * d] padded, or [t, n * d] packed.
        """
        assert attention_bias is None, "this attention adds no bias"
        keys, values = gather_key_value(key, value, cp_group=self.cp_group)
        dropout = self.dropout if self.training else 0.0
        cp_rank, scale = group_rank(self.cp_group), self.softmax_scale
        if packed_seq_params is None or packed_seq_params.qkv_format != "thd":
            out = zigzag_causal_attention(query, keys, values, cp_rank=cp_rank, scale=scale, dropout=dropout)
        else:
            lengths = sequence_lengths(_boundaries(packed_seq_params), cp_size=group_size(self.cp_group))
            out = packed_causal_attention(query, keys, values, lengths, cp_rank=cp_rank, scale=scale, dropout=dropout)
        return out.flatten(-2)


def _boundaries(packed: PackedSeqParams) -> list[int]:
    """Ends of the sequences, padding included, as Megatron's rotary embedding reads them."""
    assert packed.cp_group is None and packed.local_cp_size is None, "the context-parallel group is the model's"
    padded = packed.cu_seqlens_q_padded
    boundaries: list[int] = (packed.cu_seqlens_q if padded is None else padded).tolist()
    return boundaries


def _context_parallel_group(collection: Any) -> ProcessGroup | None:
    """The group of a collection, else of Megatron's global state; None if there is neither and this rank is alone."""
    group: ProcessGroup | None = getattr(collection, "cp", None)
    return parallel_state.get_context_parallel_group(check_initialized=False) if group is None else group

"""Layers that run where Transformer Engine does not: an RMSNorm and a core attention on torch's own kernels.

Shape legend: s sequence, b micro-batch, n query heads of this TP rank, g key/value heads of this TP rank, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import MegatronModule, TransformerConfig
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in the dtype of `x`, statistics in float32.

    Takes the place of `WrappedTorchNorm`, which refuses sequence parallelism: the weight carries Megatron's
    `sequence_parallel` mark, by which `finalize_model_grads` sums its gradient over TP ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> None:
        """Signature of a Megatron norm module.

        Args:
            config: read for `sequence_parallel` and `params_dtype`.
            hidden_size: size of the normalised dimension.
            eps: added to the mean square.
            **kwargs: what other norms take (`persist_layer_norm`, `normalization`); ignored.
        """
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [.., h].

        Args:
            x: [.., h] activations.

        Returns:
            [.., h] in the dtype of `x`.
        """
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


class SdpaCoreAttention(MegatronModule):
    """Causal self-attention with grouped queries on `scaled_dot_product_attention`.

    Takes the place of Megatron's `DotProductAttention`, which writes the [b, n, s, s] scores to memory.
    Right-padded positions come after every real one, so the causal mask alone keeps them out.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Signature of a Megatron core-attention module.

        Args:
            config: read for `attention_dropout`.
            layer_number: global, from 1; unused.
            attn_mask_type: must be causal: this module knows no other mask.
            attention_type: "self".
            attention_dropout: overrides the configuration's.
            softmax_scale: None for 1/sqrt(d).
            **kwargs: process groups and context-parallel settings; ignored at context-parallel size 1.
        """
        super().__init__(config=config)
        assert attn_mask_type.name == "causal" and attention_type == "self"
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attend causally.

        Args:
            query: [s, b, n, d].
            key: [s, b, g, d].
            value: [s, b, g, d].
            *args: Megatron's explicit mask; the causal mask is used whatever it is.
            **kwargs: mask type, bias and packing parameters; none is supported here.

        Returns:
            [s, b, n * d].
        """
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
            scale=self.softmax_scale,
            enable_gqa=True,
        )
        s, b = query.shape[:2]
        return out.permute(2, 0, 1, 3).reshape(s, b, -1)

"""Layers on torch's own kernels, for machines without Transformer Engine."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in the dtype of `x`, with statistics in float32.

    It replaces `WrappedTorchNorm`, which refuses sequence parallelism. The weight carries Megatron's
    `sequence_parallel` mark, which makes `finalize_model_grads` sum its gradient over TP ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> None:
        """Signature of a Megatron norm module.

        Args:
            config: source of `sequence_parallel` and `params_dtype`.
            hidden_size: size of the normalised dimension.
            eps: constant added to the mean square.
            **kwargs: arguments of other norms (`persist_layer_norm`, `normalization`); ignored.
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

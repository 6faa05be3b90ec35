"""Weights that turn a sum over tokens into a loss. Denominators are global, so micro-batches and ranks add up.

t: response tokens of one micro-batch, laid flat; b: its sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.errors import ConfigError

MODES = ("token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "sequence_sum_constant_norm")


def token_weights(
    kept_mask: Tensor,
    sequence_index: Tensor,
    *,
    mode: str,
    num_tokens: int,
    num_sequences: int,
    tokens_per_sequence: Tensor,
    constant_norm: float | None = None,
) -> Tensor:
    """Weight w_i of each token, for loss = sum_i w_i loss_i over every token of an optimizer step.

    token_mean                  1 / num_tokens                                    each token counts alike
    sequence_mean_token_mean    1 / (num_sequences * tokens of its sequence)      each sequence counts alike
    sequence_mean_token_sum     1 / num_sequences
    sequence_sum_constant_norm  1 / constant_norm                                 free of any length ("Dr. GRPO")

    Args:
        kept_mask: [t] bool.
        sequence_index: [t] int64, row of each token in tokens_per_sequence.
        mode: one of the four above.
        num_tokens: loss tokens of the optimizer step, over all micro-batches and ranks.
        num_sequences: sequences of the optimizer step that hold a loss token, over all micro-batches and ranks.
        tokens_per_sequence: [b] int64, loss tokens of each whole sequence.
        constant_norm: tokens that the total sum is divided by; only sequence_sum_constant_norm reads it.

    Returns:
        [t] float32, 0 at masked tokens.

    Gradient: none.

    Raises:
        ConfigError: unknown mode, or sequence_sum_constant_norm without a constant_norm above 0.
    """
    # float64 until the last line: a sequence of 30k tokens in a step of 10^8 is still exact to a float32 rounding.
    own_tokens = tokens_per_sequence[sequence_index].double()
    match mode:
        case "token_mean":
            denominators = torch.full_like(own_tokens, num_tokens)
        case "sequence_mean_token_mean":
            denominators = own_tokens * num_sequences
        case "sequence_mean_token_sum":
            denominators = torch.full_like(own_tokens, num_sequences)
        case "sequence_sum_constant_norm":
            denominators = torch.full_like(own_tokens, _checked_norm(constant_norm))
        case _:
            raise ConfigError(
                f"Aggregation {mode!r} is unknown: set algorithm.aggregation to one of {', '.join(MODES)}."
            )
    return torch.where(kept_mask, 1 / denominators, 0.0).float()


def _checked_norm(constant_norm: float | None) -> float:
    if constant_norm is None or not constant_norm > 0:
        raise ConfigError(
            f"algorithm.aggregation_norm is {constant_norm}, and sequence_sum_constant_norm divides by it:"
            " set it above 0 tokens."
        )
    return constant_norm

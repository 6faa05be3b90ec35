"""The gradient of log-probs and entropy with respect to one shard of the logits, recomputed from the logits.

Shapes: t rows, v padded vocabulary, v/tp the columns of one rank's shard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from megacov.ops.kernels.dispatch import row_kernels
from megacov.ops.row_blocks import exp2, row_blocks
from megacov.ops.vocab_statistics import LOWEST_SHIFT, NATS_PER_BIT, of_rows, shift_in_bits, widen

if TYPE_CHECKING:
    from torch import Tensor

    from megacov.ops.vocab_range import VocabRange


class GradientCoefficients(NamedTuple):
    """Numbers [t, 1] that, with s_v = (logit_v - maximum) / temperature, give each row of the gradient:

    gradient_v = exp(s_v) (constant + slope s_v) + [v is target] at_target.
    """

    maximum: Tensor
    constant: Tensor
    slope: Tensor | None
    at_target: Tensor


def gradient_coefficients(
    maximum: Tensor,
    sum_exp: Tensor,
    entropy: Tensor,
    grad_log_probs: Tensor,
    grad_entropy: Tensor | None,
    inverse_temperature: float | Tensor,
) -> GradientCoefficients:
    """Factors constant over a row in d lp / d z_v = [v is target] - p_v and d H / d z_v = -p_v (log p_v + H).

    p_v = exp(s_v) / sum_exp and log p_v = s_v - log(sum_exp), with s_v as in GradientCoefficients.

    Args:
        maximum: [t], the largest logit of each row over all shards.
        sum_exp: [t], the sum of exp(s_v) over all shards.
        entropy: [...] of t elements.
        grad_log_probs: [...] of t elements.
        grad_entropy: [...] of t elements; None where no gradient comes through the entropy.
        inverse_temperature: factor of the logits; one for all, or [t].

    Returns:
        The factors of each row.
    """
    at_target = grad_log_probs.reshape(-1) * inverse_temperature
    constant, slope = at_target, None
    if grad_entropy is not None:
        entropy_weight = grad_entropy.reshape(-1) * inverse_temperature
        constant = constant + entropy_weight * (entropy.reshape(-1) - sum_exp.log())
        slope = (-entropy_weight / sum_exp).unsqueeze(1)
    return GradientCoefficients(maximum.unsqueeze(1), (-constant / sum_exp).unsqueeze(1), slope, at_target.unsqueeze(1))


def write_gradient(
    grad_logits: Tensor,
    logits: Tensor,
    targets: Tensor,
    coefficients: GradientCoefficients,
    vocab: VocabRange,
    inverse_temperature: float | Tensor,
) -> None:
    """Write the gradient of this shard.

    Args:
        grad_logits: [t, v/tp] in the dtype of the logits, columns side by side where theirs are; overwritten. It may be
            uninitialised, or the memory of the logits.
        logits: [t, v/tp] float.
        targets: [t] int64, global vocabulary ids.
        coefficients: of the same rows.
        vocab: the part of the vocabulary in this shard.
        inverse_temperature: factor of the logits; one for all, or [t] in the compute dtype.
    """
    kernels = row_kernels(logits)
    if kernels is not None:
        kernels.write_rows(grad_logits, logits, targets, coefficients, vocab, inverse_temperature)
        return
    grad_logits[:, vocab.num_valid :] = 0
    if vocab.num_valid == 0:
        return
    columns, is_held = vocab.locate(targets)
    at_target = coefficients.at_target.where(is_held.unsqueeze(1), 0.0)
    logits, grad_logits = logits[:, : vocab.num_valid], grad_logits[:, : vocab.num_valid]
    for rows, gradient, exp in row_blocks(logits):
        block = widen(logits[rows], out=gradient)
        shift_in_bits(block, coefficients.maximum[rows], of_rows(inverse_temperature, rows), out=gradient)
        # Without a cast, the last product goes to its place at once.
        result = grad_logits[rows] if grad_logits.dtype == gradient.dtype else gradient
        if coefficients.slope is None:
            exp2(gradient, out=gradient)
            torch.mul(gradient, coefficients.constant[rows], out=result)
        else:
            exp2(gradient.clamp_(min=LOWEST_SHIFT), out=exp)
            gradient.mul_(coefficients.slope[rows] * NATS_PER_BIT).add_(coefficients.constant[rows])
            torch.mul(gradient, exp, out=result)
        # Added before the cast: at a likely target the two terms nearly cancel, and bf16 would lose the difference.
        result.scatter_add_(1, columns[rows].unsqueeze(1), at_target[rows])
        if result is gradient:
            grad_logits[rows] = gradient

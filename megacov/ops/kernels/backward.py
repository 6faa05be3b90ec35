"""The backward kernel: each logit of a shard is read once and its gradient written once, in its place if need be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from megacov.ops.vocab_statistics import LOWEST_SHIFT, NATS_PER_BIT

if TYPE_CHECKING:
    from torch import Tensor

    from megacov.ops.vocab_gradient import GradientCoefficients
    from megacov.ops.vocab_range import VocabRange

BLOCK = 4096
NUM_WARPS = 8


def write_rows(
    grad_logits: Tensor,
    logits: Tensor,
    targets: Tensor,
    coefficients: GradientCoefficients,
    vocab: VocabRange,
    inverse_temperature: float | Tensor,
) -> None:
    """Write the gradient of this shard, by the kernel.

    Args:
        grad_logits: [t, v/tp], overwritten; it may be uninitialised, or the memory of the logits.
        logits: [t, v/tp] bfloat16, float16 or float32, t > 0. Columns of both lie side by side.
        targets: [t] int64, global vocabulary ids.
        coefficients: of the same rows, float32.
        vocab: the part of the vocabulary in this shard.
        inverse_temperature: factor of the logits; one for all, or [t] float32.

    Collectives: none.
    """
    num_rows, num_columns = logits.shape
    maximum, constant, slope, at_target = (None if of is None else of.contiguous() for of in coefficients)
    is_by_row = isinstance(inverse_temperature, torch.Tensor)
    with torch.cuda.device_of(logits):
        write_block[(num_rows, triton.cdiv(num_columns, BLOCK))](
            grad_logits,
            logits,
            targets.contiguous(),
            maximum,
            constant,
            maximum if slope is None else slope,
            at_target,
            inverse_temperature.contiguous() if isinstance(inverse_temperature, torch.Tensor) else maximum,
            grad_logits.stride(0),
            logits.stride(0),
            vocab.start,
            vocab.num_valid,
            num_columns,
            1.0 if is_by_row else inverse_temperature,
            LOWEST_SHIFT=LOWEST_SHIFT,
            NATS_PER_BIT=NATS_PER_BIT,
            HAS_SLOPE=slope is not None,
            IS_BY_ROW=is_by_row,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )


@triton.jit
def write_block(
    grad_logits,
    logits,
    targets,
    maxima,
    constants,
    slopes,
    at_targets,
    inverse_temperatures,
    grad_stride,
    row_stride,
    start,
    num_valid,
    num_columns,
    inverse_temperature,
    LOWEST_SHIFT: tl.constexpr,
    NATS_PER_BIT: tl.constexpr,
    HAS_SLOPE: tl.constexpr,
    IS_BY_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_real = columns < num_valid
    if IS_BY_ROW:
        inverse_temperature = tl.load(inverse_temperatures + row)
    block = tl.load(logits + row * row_stride + columns, mask=is_real, other=float("-inf")).to(tl.float32)
    # In bits: exp2 is one instruction of a GPU, exp is five.
    shifted = (block - tl.load(maxima + row)) * (inverse_temperature / NATS_PER_BIT)
    shifted = tl.maximum(shifted, LOWEST_SHIFT, propagate_nan=tl.PropagateNan.ALL)
    factor = tl.load(constants + row)
    if HAS_SLOPE:
        factor += tl.load(slopes + row) * NATS_PER_BIT * shifted
    gradient = tl.exp2(shifted) * factor
    # Added before the cast: at a likely target the two terms nearly cancel, and bf16 would lose the difference.
    is_target = columns == tl.load(targets + row) - start
    gradient = tl.where(is_target, gradient + tl.load(at_targets + row), gradient)
    gradient = tl.where(is_real, gradient, 0.0)
    tl.store(
        grad_logits + row * grad_stride + columns,
        gradient.to(grad_logits.dtype.element_ty),
        mask=columns < num_columns,
    )

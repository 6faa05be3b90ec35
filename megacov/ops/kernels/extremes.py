"""The extremes of masked values in one kernel, which reads each value once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 4096
NUM_WARPS = 8
_MAX_PROGRAMS = 1024


def extremes_of_programs(values: Tensor, mask: Tensor) -> Tensor:
    """Minus the smallest masked value, and the largest, of the values of each program.

    Args:
        values: [t] float32, t > 0; read only.
        mask: [t] bool.

    Returns:
        [2, programs] float32; -inf where a program has no masked value, NaN where a masked value is.

    Collectives: none.
    Gradient: none.
    """
    num_programs = min(triton.cdiv(values.shape[0], BLOCK), _MAX_PROGRAMS)
    found = values.new_empty((2, num_programs))
    with torch.cuda.device_of(values):
        reduce_extremes[(num_programs,)](
            values.contiguous(), mask.contiguous(), found, values.shape[0], BLOCK=BLOCK, num_warps=NUM_WARPS
        )
    return found


@triton.jit
def reduce_extremes(values, mask, found, num_values, BLOCK: tl.constexpr):
    negated_smallest = tl.full((BLOCK,), float("-inf"), tl.float32)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    num_nan = tl.zeros((BLOCK,), tl.int32)
    for first in range(tl.program_id(0) * BLOCK, num_values, tl.num_programs(0) * BLOCK):
        places = first + tl.arange(0, BLOCK)
        is_masked = tl.load(mask + places, mask=places < num_values, other=0) != 0
        block = tl.load(values + places, mask=is_masked, other=0.0)
        num_nan += (is_masked & (block != block)).to(tl.int32)
        negated_smallest = tl.maximum(negated_smallest, tl.where(is_masked, -block, float("-inf")))
        largest = tl.maximum(largest, tl.where(is_masked, block, float("-inf")))
    # A GPU's maximum drops NaN.
    has_nan = tl.sum(num_nan, 0) > 0
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    tl.store(found + program, tl.where(has_nan, float("nan"), tl.max(negated_smallest, 0)))
    tl.store(found + num_programs + program, tl.where(has_nan, float("nan"), tl.max(largest, 0)))

"""The forward kernel: each row of a shard is read once and reduced to the numbers of `shard_statistics`.

A program takes a row, block by block, with the running maximum and running sums of an online softmax: when the maximum
grows from m to m', sum_v exp(s_v) grows by exp(o) and sum_v exp(s_v) s_v becomes exp(o) (sum_v exp(s_v) (s_v + o)),
with o = (m - m') / temperature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from megacov.ops.vocab_statistics import LOWEST_SHIFT

if TYPE_CHECKING:
    from torch import Tensor

    from megacov.ops.vocab_range import VocabRange

# Fixed, not tuned at run time: another block adds in another order, and a resumed run would get other bits.
BLOCK = 4096
NUM_WARPS = 8


def reduce_rows(
    logits: Tensor, targets: Tensor, vocab: VocabRange, inverse_temperature: float | Tensor, *, with_squares: bool
) -> Tensor:
    """The numbers of `shard_statistics`, by the kernel.

    Args:
        logits: [t, v/tp] bfloat16, float16 or float32, t > 0, columns side by side; read only.
        targets: [t] int64, global vocabulary ids.
        vocab: the part of the vocabulary in this shard.
        inverse_temperature: factor of the logits; one for all, or [t] float32.
        with_squares: whether to compute the sums of squares. The other numbers have the same bits either way.

    Returns:
        [t, 4], or [t, 6] with the squares, float32.

    Collectives: none.
    Gradient: none.
    """
    statistics = logits.new_empty((logits.shape[0], 6 if with_squares else 4), dtype=torch.float32)
    is_by_row = isinstance(inverse_temperature, torch.Tensor)
    with torch.cuda.device_of(logits):
        reduce_row[(logits.shape[0],)](
            logits,
            targets.contiguous(),
            inverse_temperature.contiguous() if isinstance(inverse_temperature, torch.Tensor) else statistics,
            statistics,
            logits.stride(0),
            vocab.start,
            vocab.num_valid,
            1.0 if is_by_row else inverse_temperature,
            LOWEST=torch.finfo(torch.float32).min,
            LOWEST_SHIFT=LOWEST_SHIFT,
            HAS_SQUARES=with_squares,
            IS_BY_ROW=is_by_row,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return statistics


@triton.jit
def reduce_row(
    logits,
    targets,
    inverse_temperatures,
    statistics,
    row_stride,
    start,
    num_valid,
    inverse_temperature,
    LOWEST: tl.constexpr,
    LOWEST_SHIFT: tl.constexpr,
    HAS_SQUARES: tl.constexpr,
    IS_BY_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    if IS_BY_ROW:
        inverse_temperature = tl.load(inverse_temperatures + row)
    # A row of nothing but -inf keeps this finite maximum, because -inf - -inf is NaN.
    maximum = tl.full((), LOWEST, tl.float32)
    sum_exp = tl.full((), 0.0, tl.float32)
    weighted = tl.full((), 0.0, tl.float32)
    squares = tl.full((), 0.0, tl.float32)
    weighted_squares = tl.full((), 0.0, tl.float32)
    for first in range(0, num_valid, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        block = tl.load(logits + columns, mask=columns < num_valid, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(maximum, tl.max(block, 0))
        offset = tl.maximum((maximum - larger) * inverse_temperature, LOWEST_SHIFT)
        scale = tl.exp(offset)
        # A logit that is NaN must not become a small number, which a GPU's plain maximum makes of it.
        shifted = tl.maximum((block - larger) * inverse_temperature, LOWEST_SHIFT, propagate_nan=tl.PropagateNan.ALL)
        exp = tl.exp(shifted)
        weighted = (weighted + sum_exp * offset) * scale + tl.sum(exp * shifted, 0)
        sum_exp = sum_exp * scale + tl.sum(exp, 0)
        if HAS_SQUARES:
            weighted_squares = (weighted_squares + squares * offset) * scale * scale + tl.sum(exp * exp * shifted, 0)
            squares = squares * scale * scale + tl.sum(exp * exp, 0)
        maximum = larger
    column = tl.load(targets + row) - start
    is_held = (column >= 0) & (column < num_valid)
    at_target = tl.load(logits + column, mask=is_held, other=float("-inf")).to(tl.float32)
    statistics += row * (6 if HAS_SQUARES else 4)
    tl.store(statistics, maximum)
    tl.store(statistics + 1, sum_exp)
    tl.store(statistics + 2, weighted)
    tl.store(statistics + 3, at_target)
    if HAS_SQUARES:
        tl.store(statistics + 4, squares)
        tl.store(statistics + 5, weighted_squares)

"""The forward kernel: each row of a shard is read once and reduced to the numbers of `shard_statistics`.

A program takes a row, block by block, with the running maximum and running sums of an online softmax: when the maximum
grows from m to m', sum_v exp(s_v) grows by exp(o) and sum_v exp(s_v) s_v becomes exp(o) (sum_v exp(s_v) (s_v + o)),
with o = (m - m') / temperature. Each run of logits that a thread loads at once has a maximum and sums of its own, so
that threads exchange nothing until the row ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from megacov.ops.vocab_statistics import LOWEST_SHIFT, NATS_PER_BIT

if TYPE_CHECKING:
    from torch import Tensor

    from megacov.ops.vocab_range import VocabRange

# Fixed, not tuned at run time: another block adds in another order, and a resumed run would get other bits.
BLOCK = 4096
NUM_WARPS = 8
BYTES_AT_ONCE = 16  # the widest load of a thread


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
            NATS_PER_BIT=NATS_PER_BIT,
            HAS_SQUARES=with_squares,
            IS_BY_ROW=is_by_row,
            BLOCK=BLOCK,
            RUN=BYTES_AT_ONCE // logits.itemsize,
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
    NATS_PER_BIT: tl.constexpr,
    HAS_SQUARES: tl.constexpr,
    IS_BY_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    RUN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    if IS_BY_ROW:
        inverse_temperature = tl.load(inverse_temperatures + row)
    # Shifts are in bits: exp2 is one instruction of a GPU, exp is five.
    factor = inverse_temperature / NATS_PER_BIT
    lanes: tl.constexpr = BLOCK // RUN
    columns = tl.arange(0, lanes)[:, None] * RUN + tl.arange(0, RUN)[None, :]
    # A lane of nothing but -inf keeps this finite maximum, because -inf - -inf is NaN.
    maxima = tl.full((lanes,), LOWEST, tl.float32)
    sums = tl.zeros((lanes,), tl.float32)
    weighted = tl.zeros((lanes,), tl.float32)
    squares = tl.zeros((lanes,), tl.float32)
    weighted_squares = tl.zeros((lanes,), tl.float32)
    num_whole = num_valid // BLOCK * BLOCK
    for first in range(0, num_whole, BLOCK):
        block = tl.load(logits + first + columns)
        maxima, sums, weighted, squares, weighted_squares = add_block(
            block, maxima, sums, weighted, squares, weighted_squares, factor, LOWEST_SHIFT, HAS_SQUARES
        )
    if num_whole < num_valid:
        block = tl.load(logits + num_whole + columns, mask=num_whole + columns < num_valid, other=float("-inf"))
        maxima, sums, weighted, squares, weighted_squares = add_block(
            block, maxima, sums, weighted, squares, weighted_squares, factor, LOWEST_SHIFT, HAS_SQUARES
        )
    maximum = tl.max(maxima, 0)
    offsets = tl.maximum((maxima - maximum) * factor, LOWEST_SHIFT)
    scales = tl.exp2(offsets)
    column = tl.load(targets + row) - start
    is_held = (column >= 0) & (column < num_valid)
    at_target = tl.load(logits + column, mask=is_held, other=float("-inf")).to(tl.float32)
    statistics += row * (6 if HAS_SQUARES else 4)
    tl.store(statistics, maximum)
    tl.store(statistics + 1, tl.sum(sums * scales, 0))
    tl.store(statistics + 2, tl.sum((weighted + sums * offsets) * scales, 0) * NATS_PER_BIT)
    tl.store(statistics + 3, at_target)
    if HAS_SQUARES:
        scales *= scales
        tl.store(statistics + 4, tl.sum(squares * scales, 0))
        tl.store(statistics + 5, tl.sum((weighted_squares + squares * offsets) * scales, 0) * NATS_PER_BIT)


@triton.jit
def add_block(
    block,
    maxima,
    sums,
    weighted,
    squares,
    weighted_squares,
    factor,
    LOWEST_SHIFT: tl.constexpr,
    HAS_SQUARES: tl.constexpr,
):
    block = block.to(tl.float32)
    larger = tl.maximum(maxima, tl.max(block, 1))
    offsets = tl.maximum((maxima - larger) * factor, LOWEST_SHIFT)
    scales = tl.exp2(offsets)
    # A logit that is NaN must not become a small number, which a GPU's plain maximum makes of it.
    shifted = tl.maximum((block - larger[:, None]) * factor, LOWEST_SHIFT, propagate_nan=tl.PropagateNan.ALL)
    exp = tl.exp2(shifted)
    weighted = (weighted + sums * offsets) * scales + tl.sum(exp * shifted, 1)
    sums = sums * scales + tl.sum(exp, 1)
    if HAS_SQUARES:
        scales *= scales
        # Not exp * (exp * shifted): the compiler fuses that product into the sum above if nothing else needs it, and
        # that sum would then have other bits than without the squares.
        exp *= exp
        weighted_squares = (weighted_squares + squares * offsets) * scales + tl.sum(exp * shifted, 1)
        squares = squares * scales + tl.sum(exp, 1)
    return larger, sums, weighted, squares, weighted_squares

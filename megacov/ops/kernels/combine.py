"""One kernel for what the ranks' numbers of each row give together, in place of some twenty small ones of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from megacov.ops.vocab_statistics import LOWEST_SHIFT

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 256
NUM_WARPS = 4


def combine_rows(
    statistics: Tensor, targets: Tensor, vocab_size: int, inverse_temperature: float | Tensor
) -> tuple[Tensor, ...]:
    """The numbers of `combine`, by the kernel.

    Args:
        statistics: [tp, t, 4 or 6] float32, those of all shards in rank order.
        targets: [t] int64, global vocabulary ids.
        vocab_size: entries without padding.
        inverse_temperature: factor of the logits; one for all, or [t] float32.

    Returns:
        The fields of RowStatistics in order, each [t] float32; the first four, or all six with the squares.

    Collectives: none.
    Gradient: none.
    """
    num_shards, num_rows, num_statistics = statistics.shape
    results = statistics.new_empty((num_statistics, num_rows))
    is_by_row = isinstance(inverse_temperature, torch.Tensor)
    with torch.cuda.device_of(statistics):
        combine_block[(triton.cdiv(num_rows, BLOCK),)](
            statistics.contiguous(),
            targets.contiguous(),
            inverse_temperature.contiguous() if isinstance(inverse_temperature, torch.Tensor) else statistics,
            results,
            num_shards,
            num_rows,
            vocab_size,
            1.0 if is_by_row else inverse_temperature,
            LOWEST_SHIFT=LOWEST_SHIFT,
            HAS_SQUARES=num_statistics == 6,
            IS_BY_ROW=is_by_row,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return results.unbind(0)


@triton.jit
def combine_block(
    statistics,
    targets,
    inverse_temperatures,
    results,
    num_shards,
    num_rows,
    vocab_size,
    inverse_temperature,
    LOWEST_SHIFT: tl.constexpr,
    HAS_SQUARES: tl.constexpr,
    IS_BY_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_rows
    if IS_BY_ROW:
        inverse_temperature = tl.load(inverse_temperatures + rows, mask=is_row, other=1.0)
    width: tl.constexpr = 6 if HAS_SQUARES else 4
    statistics += rows * width
    maximum = tl.full((BLOCK,), float("-inf"), tl.float32)
    at_target = maximum
    for shard in range(num_shards):
        own = statistics + shard * num_rows * width
        shard_maximum = tl.load(own, mask=is_row, other=0.0)
        maximum = tl.maximum(maximum, shard_maximum, propagate_nan=tl.PropagateNan.ALL)
        shard_target = tl.load(own + 3, mask=is_row, other=0.0)
        at_target = tl.maximum(at_target, shard_target, propagate_nan=tl.PropagateNan.ALL)
    sum_exp = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    weighted_squares = tl.zeros((BLOCK,), tl.float32)
    for shard in range(num_shards):
        own = statistics + shard * num_rows * width
        offset = (tl.load(own, mask=is_row, other=0.0) - maximum) * inverse_temperature
        offset = tl.maximum(offset, LOWEST_SHIFT, propagate_nan=tl.PropagateNan.ALL)
        scale = tl.exp(offset)
        shard_sum = tl.load(own + 1, mask=is_row, other=1.0)
        sum_exp += shard_sum * scale
        weighted += (tl.load(own + 2, mask=is_row, other=0.0) + shard_sum * offset) * scale
        if HAS_SQUARES:
            shard_squares = tl.load(own + 4, mask=is_row, other=0.0)
            shard_weighted = tl.load(own + 5, mask=is_row, other=0.0)
            squares += shard_squares * scale * scale
            weighted_squares += (shard_weighted + shard_squares * offset) * scale * scale
    log_sum_exp = tl.log(sum_exp)
    target = tl.load(targets + rows, mask=is_row, other=0)
    is_real = (target >= 0) & (target < vocab_size)
    log_probs = tl.where(is_real, (at_target - maximum) * inverse_temperature - log_sum_exp, float("nan"))
    results += rows
    tl.store(results, maximum, mask=is_row)
    tl.store(results + num_rows, sum_exp, mask=is_row)
    tl.store(results + 2 * num_rows, log_probs, mask=is_row)
    tl.store(results + 3 * num_rows, log_sum_exp - weighted / sum_exp, mask=is_row)
    if HAS_SQUARES:
        # log p_v = s_v - log_sum_exp, and p_v = exp(s_v) / sum_exp.
        tl.store(results + 4 * num_rows, squares / sum_exp / sum_exp, mask=is_row)
        tl.store(results + 5 * num_rows, (weighted_squares - squares * log_sum_exp) / sum_exp / sum_exp, mask=is_row)

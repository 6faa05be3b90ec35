"""Both passes over a shard of the logits as loops that numba compiles for a CPU.

torch makes a pass over a block of rows for each operation. Here one loop does all of them for a logit. The forward
reads a row for its maximum and, from the cache, for its sums. The backward reads it once and writes its gradient once.
A process compiles each loop at its first call, in about a second.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numba
import numpy as np
import torch

from megacov.ops.kernels.loop_elements import (
    STRIDE,
    ask_for_stride,
    exp2,
    from_float32,
    gradient_of,
    shift_in_bits,
    to_float32,
)
from megacov.ops.vocab_statistics import NATS_PER_BIT

if TYPE_CHECKING:
    from torch import Tensor

    from megacov.ops.vocab_gradient import GradientCoefficients
    from megacov.ops.vocab_range import VocabRange

# Logits that are added up in float32, in an order that the compiler chooses. The runs of a row are added up in float64.
RUN = 1024

# The compiler may reorder sums and fuse a product into a sum. NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "arcp", "nsz"}

_LOWEST = np.float32(np.finfo(np.float32).min)
_MINUS_INFINITY = np.float32(-math.inf)
_ZERO = np.float32(0)


def reduce_rows(
    logits: Tensor, targets: Tensor, vocab: VocabRange, inverse_temperature: float | Tensor, *, with_squares: bool
) -> Tensor:
    """The numbers of `shard_statistics`, by the loops.

    In a row with NaN the maximum is that of the other logits; the sums are NaN, and with them all results.

    Args:
        logits: [t, v/tp] bfloat16 or float32 on a CPU, t > 0, columns side by side; read only.
        targets: [t] int64, global vocabulary ids.
        vocab: the part of the vocabulary in this shard.
        inverse_temperature: factor of the logits; one for all, or [t] float32.
        with_squares: whether to compute the sums of squares. The other numbers have the same bits either way.

    Returns:
        [t, 4], or [t, 6] with the squares, float32.

    Collectives: none.
    Gradient: none.
    """
    statistics = logits.new_empty((len(logits), 6 if with_squares else 4), dtype=torch.float32)
    columns, is_held = vocab.locate(targets)
    _reduce_rows(
        _memory_of(logits),
        logits.stride(0),
        vocab.num_valid,
        columns.where(is_held, -1).numpy(),
        _bits_per_logit(inverse_temperature, len(logits)).numpy(),
        statistics.numpy(),
    )
    return statistics


def write_rows(
    grad_logits: Tensor,
    logits: Tensor,
    targets: Tensor,
    coefficients: GradientCoefficients,
    vocab: VocabRange,
    inverse_temperature: float | Tensor,
) -> None:
    """Write the gradient of this shard, as `write_gradient` does, by the loops.

    Args:
        grad_logits: [t, v/tp] in the dtype of the logits, columns side by side, overwritten; it may be their memory.
        logits: [t, v/tp] bfloat16 or float32 on a CPU, t > 0, columns side by side.
        targets: [t] int64, global vocabulary ids.
        coefficients: of the same rows.
        vocab: the part of the vocabulary in this shard.
        inverse_temperature: factor of the logits; one for all, or [t] float32.
    """
    grad_logits[:, vocab.num_valid :] = 0
    columns, is_held = vocab.locate(targets)
    slope = torch.zeros_like(coefficients.constant) if coefficients.slope is None else coefficients.slope
    bits_per_logit = _bits_per_logit(inverse_temperature, len(logits)).unsqueeze(1)
    of_rows = (
        coefficients.maximum,
        coefficients.constant,
        slope * NATS_PER_BIT,
        coefficients.at_target,
        bits_per_logit,
    )
    _write_rows(
        _memory_of(grad_logits),
        grad_logits.stride(0),
        _memory_of(logits),
        logits.stride(0),
        grad_logits.data_ptr() == logits.data_ptr(),
        vocab.num_valid,
        columns.where(is_held, -1).numpy(),
        torch.cat(of_rows, 1).detach().numpy(),
    )


def _memory_of(rows: Tensor) -> np.ndarray:
    """The memory from the first element of the rows to the last, with what lies between them; bfloat16 as its bits."""
    length = (len(rows) - 1) * rows.stride(0) + rows.shape[1]
    flat = rows.detach().as_strided((length,), (1,))
    return (flat.view(torch.uint16) if rows.dtype == torch.bfloat16 else flat).numpy()


def _bits_per_logit(inverse_temperature: float | Tensor, num_rows: int) -> Tensor:
    """[t] float32; equal temperatures give the same bits as one number and as a tensor."""
    if not isinstance(inverse_temperature, torch.Tensor):
        inverse_temperature = torch.full((num_rows,), inverse_temperature, dtype=torch.float64, device="cpu").float()
    return (inverse_temperature.double() / NATS_PER_BIT).float()


@numba.njit(nogil=True)
def _maximum(row):
    """The largest logit of a row, NaN left out; the lowest float32 for a row of nothing but -inf."""
    # One maximum for each logit of a stride: for a single maximum numba would take one logit at a time
    # (findings/numba_maximum_takes_one_value_at_a_time.sh).
    maxima = np.full(STRIDE, _LOWEST, np.float32)
    num_whole = row.shape[0] // STRIDE * STRIDE
    for first in range(0, num_whole, STRIDE):
        ask_for_stride(row, first)
        part = row[first : first + STRIDE]
        for lane in range(STRIDE):
            logit = to_float32(part[lane])
            maxima[lane] = logit if logit > maxima[lane] else maxima[lane]
    maximum = _LOWEST
    for column in range(num_whole, row.shape[0]):
        maximum = max(maximum, to_float32(row[column]))
    for lane in range(STRIDE):
        maximum = max(maximum, maxima[lane])
    return maximum


@numba.njit(fastmath=FAST, nogil=True)
def _add_run(run, maximum, bits_per_logit, exp, shifts):
    """Sums of exp(s) and exp(s) s, s in bits; both factors stay in `exp` and `shifts` for `_add_squares`."""
    sum_exp = sum_weighted = _ZERO
    for column in range(run.shape[0]):
        shift = shift_in_bits(to_float32(run[column]), maximum, bits_per_logit)
        power = exp2(shift)
        exp[column] = power
        shifts[column] = shift
        sum_exp += power
        sum_weighted += power * shift
    return sum_exp, sum_weighted


@numba.njit(fastmath=FAST, nogil=True)
def _add_squares(exp, shifts):
    """Sums of exp(2 s) and exp(2 s) s, in a loop of its own, so that those of `_add_run` have the same bits without."""
    sum_squares = sum_weighted = _ZERO
    for column in range(exp.shape[0]):
        square = exp[column] * exp[column]
        sum_squares += square
        sum_weighted += square * shifts[column]
    return sum_squares, sum_weighted


@numba.njit(nogil=True)
def _reduce_rows(logits, row_stride, num_columns, target_columns, bits_per_logit, statistics):
    exp, shifts = np.empty(RUN, np.float32), np.empty(RUN, np.float32)
    with_squares = statistics.shape[1] > 4
    for index in range(statistics.shape[0]):
        row = logits[index * row_stride : index * row_stride + num_columns]
        maximum = _maximum(row)
        sum_exp = weighted = squares = weighted_squares = 0.0
        for first in range(0, num_columns, RUN):
            run = row[first : first + RUN]
            size = run.shape[0]
            added = _add_run(run, maximum, bits_per_logit[index], exp[:size], shifts[:size])
            sum_exp += added[0]
            weighted += added[1]
            if with_squares:
                added = _add_squares(exp[:size], shifts[:size])
                squares += added[0]
                weighted_squares += added[1]
        target = target_columns[index]
        statistics[index, 0] = maximum
        statistics[index, 1] = sum_exp
        statistics[index, 2] = weighted * NATS_PER_BIT
        statistics[index, 3] = to_float32(row[target]) if target >= 0 else _MINUS_INFINITY
        if with_squares:
            statistics[index, 4] = squares
            statistics[index, 5] = weighted_squares * NATS_PER_BIT


@numba.njit(fastmath=FAST, nogil=True)
def _write_stride(logits, result, maximum, bits_per_logit, constant, slope):
    for column in range(logits.shape[0]):
        gradient = gradient_of(to_float32(logits[column]), maximum, bits_per_logit, constant, slope)
        result[column] = from_float32(gradient, result)


@numba.njit(fastmath=FAST, nogil=True)
def _overwrite_stride(logits, maximum, bits_per_logit, constant, slope):
    """`_write_stride` onto the logits: with two names for their memory, the compiler would take one at a time."""
    for column in range(logits.shape[0]):
        gradient = gradient_of(to_float32(logits[column]), maximum, bits_per_logit, constant, slope)
        logits[column] = from_float32(gradient, logits)


@numba.njit(fastmath=FAST, nogil=True)
def _write_rows(grad_logits, grad_stride, logits, row_stride, is_in_place, num_columns, target_columns, of_rows):
    for index in range(target_columns.shape[0]):
        row = logits[index * row_stride : index * row_stride + num_columns]
        result = grad_logits[index * grad_stride : index * grad_stride + num_columns]
        maximum, constant, slope, at_target, bits_per_logit = of_rows[index]
        target = target_columns[index]
        target_logit = to_float32(row[target]) if target >= 0 else _ZERO
        for first in range(0, num_columns, STRIDE):
            ask_for_stride(row, first)
            part = row[first : first + STRIDE]
            if is_in_place:
                _overwrite_stride(part, maximum, bits_per_logit, constant, slope)
            else:
                _write_stride(part, result[first : first + STRIDE], maximum, bits_per_logit, constant, slope)
        if target >= 0:
            # Added before the cast: at a likely target the two terms nearly cancel.
            gradient = gradient_of(target_logit, maximum, bits_per_logit, constant, slope)
            result[target] = from_float32(gradient + at_target, result)

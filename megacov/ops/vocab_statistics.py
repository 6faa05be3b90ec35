"""Numbers of each row of logits whose vocabulary is sharded over ranks: one pass over the shard and one all-gather.

Shapes: t rows, v padded vocabulary, v/tp the columns of one rank's shard, tp ranks. A rank reduces each row of its
shard to four numbers, or six where the sums of squares are asked for. One all-gather exchanges them, and each rank
combines them in rank order, so that all ranks hold the same bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from megacov.ops.kernels.dispatch import row_kernels, runs_on
from megacov.ops.row_blocks import compute_dtype, exp2, row_blocks
from megacov.parallel.collectives import all_gather

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from megacov.ops.vocab_range import VocabRange

# exp(LOWEST_SHIFT) is 0 in float32 and float64, so raising a shifted logit of -inf to it changes no probability. In
# the entropy it turns 0 * -inf, which is NaN, into 0 * finite.
LOWEST_SHIFT = -1e4

NATS_PER_BIT = math.log(2)

_MAXIMUM, _TARGET = 0, 3


class RowStatistics(NamedTuple):
    """Of each row, with s_v = (logit_v - maximum) / temperature and p = softmax(s); all [t] in the compute dtype.

    maximum, sum_exp: the largest logit, and sum_v exp(s_v).
    log_probs: log p of the target, NaN for a target outside the vocabulary.
    entropy: -sum_v p_v log p_v.
    square_sum, square_log_sum: sum_v p_v^2 and sum_v p_v^2 log p_v; None unless asked for.
    """

    maximum: Tensor
    sum_exp: Tensor
    log_probs: Tensor
    entropy: Tensor
    square_sum: Tensor | None
    square_log_sum: Tensor | None


def row_statistics(
    logits: Tensor,
    targets: Tensor,
    vocab: VocabRange,
    inverse_temperature: float | Tensor,
    *,
    with_squares: bool,
    tp_group: ProcessGroup | None,
) -> RowStatistics:
    """Reduce each row of the whole vocabulary to a few numbers.

    Args:
        logits: [t, v/tp] float, read only.
        targets: [t] int64, global vocabulary ids.
        vocab: the part of the vocabulary in this shard.
        inverse_temperature: factor of the logits; one for all, or [t] in the compute dtype.
        with_squares: whether to compute the sums of squares. The other numbers have the same bits either way.
        tp_group: ranks that hold the shards, in order.

    Returns:
        The numbers, equal on all tp ranks.

    Collectives: tp_group: all-gather [t, 4], or [t, 6] with the squares, in the compute dtype.
    Gradient: none.
    """
    own = shard_statistics(logits, targets, vocab, inverse_temperature, with_squares=with_squares)
    return combine(all_gather(own, group=tp_group), targets, vocab, inverse_temperature)


def shard_statistics(
    logits: Tensor, targets: Tensor, vocab: VocabRange, inverse_temperature: float | Tensor, *, with_squares: bool
) -> Tensor:
    """Numbers of each row of this shard, from which all ranks compute the results.

    With m the largest logit and s_v = (logit_v - m) / temperature, both over the real entries of the shard:
    m, sum_v exp(s_v), sum_v exp(s_v) s_v, and the target's logit, -inf where another shard holds it; with squares also
    sum_v exp(2 s_v) and sum_v exp(2 s_v) s_v.

    Args:
        logits: as in `row_statistics`, like the other arguments.
        targets: as there.
        vocab: as there.
        inverse_temperature: as there.
        with_squares: as there.

    Returns:
        [t, 4], or [t, 6] with the squares, in the compute dtype.
    """
    kernels = row_kernels(logits)
    if kernels is not None:
        return kernels.reduce_rows(logits, targets, vocab, inverse_temperature, with_squares=with_squares)
    dtype = compute_dtype(logits.dtype)
    columns, is_held = vocab.locate(targets)
    target_logits = logits.gather(1, columns.unsqueeze(1)).squeeze(1).to(dtype).where(is_held, -math.inf)
    if vocab.num_valid == 0 or len(logits) == 0:
        statistics = logits.new_zeros((len(logits), 6 if with_squares else 4), dtype=dtype)
        statistics[:, _MAXIMUM] = torch.finfo(dtype).min
        statistics[:, _TARGET] = target_logits
        return statistics
    logits = logits[:, : vocab.num_valid]
    # Lists, because on a CPU each write to a slice takes as long as some of these sums.
    blocks = [
        _reduce_block(logits[rows], of_rows(inverse_temperature, rows), shifted, exp, with_squares=with_squares)
        for rows, shifted, exp in row_blocks(logits)
    ]
    numbers = [torch.cat(of_blocks) for of_blocks in zip(*blocks, strict=True)]
    return torch.stack([*numbers[:_TARGET], target_logits, *numbers[_TARGET:]], 1)


def _reduce_block(
    block: Tensor, inverse_temperature: float | Tensor, shifted: Tensor, exp: Tensor, *, with_squares: bool
) -> list[Tensor]:
    """The numbers of `shard_statistics` but the target's logit, [rows] each; `shifted` and `exp` are overwritten."""
    block = widen(block, out=shifted)
    # A row of nothing but -inf gets a finite maximum, because -inf - -inf is NaN.
    maximum = block.amax(1, keepdim=True).clamp_(min=torch.finfo(exp.dtype).min)
    shift_in_bits(block, maximum, inverse_temperature, out=shifted).clamp_(min=LOWEST_SHIFT)
    exp2(shifted, out=exp)
    numbers = [maximum.squeeze(1), exp.sum(1), shifted.mul_(exp).sum(1).mul_(NATS_PER_BIT)]
    if with_squares:
        # `sum` adds pairwise. A norm or a dot product would add 10 to 100 times the rounding errors.
        weighted_squares = shifted.mul_(exp).sum(1).mul_(NATS_PER_BIT)
        numbers += [exp.square_().sum(1), weighted_squares]
    return numbers


def combine(
    statistics: Tensor, targets: Tensor, vocab: VocabRange, inverse_temperature: float | Tensor
) -> RowStatistics:
    """Numbers of each row over the whole vocabulary.

    Args:
        statistics: [tp, t, 4 or 6], those of all shards in rank order.
        targets: as in `row_statistics`, like the other arguments.
        vocab: as there.
        inverse_temperature: as there.

    Returns:
        The numbers.
    """
    if statistics.dtype == torch.float32 and statistics.numel() > 0 and runs_on(statistics):
        from megacov.ops.kernels.combine import combine_rows  # with Triton, which not every machine has

        fields = combine_rows(statistics, targets, vocab.vocab_size, inverse_temperature)
        return RowStatistics(*fields[:4], *(fields[4:] or (None, None)))
    maxima, sums, weighted, target_logits, *squares = statistics.unbind(-1)
    maximum = maxima.amax(0)
    offset = ((maxima - maximum) * inverse_temperature).clamp_(min=LOWEST_SHIFT)
    scale = offset.exp()
    sum_exp = (sums * scale).sum(0)
    log_sum_exp = sum_exp.log()
    is_real = (targets >= 0) & (targets < vocab.vocab_size)
    log_probs = ((target_logits.amax(0) - maximum) * inverse_temperature - log_sum_exp).where(is_real, math.nan)
    entropy = log_sum_exp - ((weighted + sums * offset) * scale).sum(0) / sum_exp
    if not squares:
        return RowStatistics(maximum, sum_exp, log_probs, entropy, None, None)
    # log p_v = s_v + offset - log_sum_exp, and a shard's exp(2 s_v) grow by the square of its scale.
    weights = (scale / sum_exp).square()
    square_sum = (squares[0] * weights).sum(0)
    square_log_sum = ((squares[1] + squares[0] * (offset - log_sum_exp)) * weights).sum(0)
    return RowStatistics(maximum, sum_exp, log_probs, entropy, square_sum, square_log_sum)


def widen(block: Tensor, *, out: Tensor) -> Tensor:
    """The block in the dtype of `out`.

    Args:
        block: [rows, v] float, read only.
        out: [rows, v] in the compute dtype, overwritten if the dtypes differ.

    Returns:
        The block itself if it has that dtype, otherwise a copy in `out`.
    """
    return block if block.dtype == out.dtype else out.copy_(block)


def shift_in_bits(block: Tensor, maximum: Tensor, inverse_temperature: float | Tensor, *, out: Tensor) -> Tensor:
    """(block - maximum) / temperature, in bits, for exp2: on an AMD EPYC torch's exp takes 4 times as long.

    Args:
        block: [rows, v] in the compute dtype.
        maximum: [rows, 1].
        inverse_temperature: a number, or [rows, 1].
        out: [rows, v], overwritten; it may be the block's memory.

    Returns:
        `out`.
    """
    return torch.sub(block, maximum, out=out).mul_(inverse_temperature / NATS_PER_BIT)


def of_rows(inverse_temperature: float | Tensor, rows: slice) -> float | Tensor:
    """The factor of a block of rows: a number, or [rows, 1]."""
    if isinstance(inverse_temperature, torch.Tensor):
        return inverse_temperature[rows].unsqueeze(1)
    return inverse_temperature

"""Log-probs and entropy straight from hidden states and the weight of the output layer, without the logits in memory.

Shapes: t positions laid flat, h hidden size, v padded vocabulary, v/tp the rows of one rank's shard of the weight.

Positions are taken in chunks: a chunk's logits are computed in the dtype of the hidden states, as the output layer
itself computes them, reduced to a few numbers a row by vocab_statistics.py, and overwritten by the next chunk's. The
backward pass computes them again. So the largest tensor is that of one chunk, [chunk_tokens, v/tp].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from megacov.ops.row_blocks import compute_dtype
from megacov.ops.vocab_arguments import prepare
from megacov.ops.vocab_gradient import GradientCoefficients, gradient_coefficients, write_gradient
from megacov.ops.vocab_statistics import RowStatistics, combine, shard_statistics
from megacov.parallel.collectives import all_gather, all_reduce_sum

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from torch.distributed import ProcessGroup

    from megacov.ops.vocab_range import VocabRange

CHUNK_TOKENS = 1024
"""Positions whose logits exist at a time: 297 MiB in bfloat16 for a whole vocabulary of 152,064."""


class LinearSums(NamedTuple):
    """Of each position, [...] detached, with p = softmax(logits / temperature).

    log_probs, entropy: as in `linear_log_probs_and_entropy`. [nats]
    entropy_t1: the entropy at temperature 1; None unless asked for. [nats]
    square_sum, square_log_sum: as in `VocabSums`; None unless asked for.
    """

    log_probs: Tensor
    entropy: Tensor
    entropy_t1: Tensor | None
    square_sum: Tensor | None
    square_log_sum: Tensor | None


def linear_log_probs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    tp_group: ProcessGroup | None,
    temperature: float | Tensor = 1.0,
    entropy_grad: bool = False,
    vocab_size: int | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each position, with logits = hidden @ weight^T.

    Otherwise it is `vocab_parallel_log_probs_and_entropy`: the same formulas, with logits rounded to the dtype of the
    hidden states.

    Args:
        hidden: [..., h] of any float dtype, equal on all tp ranks, read only. With sequence parallelism the caller
            gathers it first.
        weight: [v/tp, h] in the same dtype, this rank's shard of the output layer, read only.
        targets: [...] int64, global vocabulary ids, equal on all tp ranks.
        tp_group: ranks that hold the shards of the vocabulary, in order; None if it is not sharded.
        temperature: positive divisor of the logits; one for all, or [...] float, equal on all tp ranks.
        entropy_grad: whether a gradient flows through the entropy.
        vocab_size: entries without padding; None for no padding.
        chunk_tokens: positions whose logits exist at a time; it changes results by rounding alone.

    Returns:
        log_probs: [...] float32 (float64 for float64 hidden states), equal on all tp ranks.
        entropy: [...] in the same dtype, in nats at this temperature, equal on all tp ranks.

    Collectives: tp_group: all-gather [t, 4] in the dtype of the results. In backward, SUM [t, h] in the dtype of the
        hidden states, if they need a gradient: as Megatron's ColumnParallelLinear does without sequence parallelism.
    Gradient: to hidden, whole on every tp rank; and to weight, of this shard, each chunk's product added in float32 and
        the sum rounded to the weight's dtype. Through entropy only if entropy_grad. Not differentiable twice.

    Raises:
        ValueError: if hidden and weight do not fit each other, chunk_tokens is below 1, or as in
            `vocab_parallel_log_probs_and_entropy`.
    """
    vocab, inverse_temperature = _prepare(hidden, weight, targets, temperature, vocab_size, chunk_tokens, tp_group)
    log_probs, entropy = _LinearLogProbsAndEntropy.apply(
        hidden, weight, targets, vocab, inverse_temperature, entropy_grad, chunk_tokens, tp_group
    )
    return log_probs, entropy


@torch.no_grad()
def linear_sums(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    tp_group: ProcessGroup | None,
    temperature: float | Tensor = 1.0,
    vocab_size: int | None = None,
    with_entropy_t1: bool = False,
    with_squares: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
) -> LinearSums:
    """All that a forward-only pass may want to know of each position, from one computation of the logits.

    Args:
        hidden: [..., h], as in `linear_log_probs_and_entropy`.
        weight: [v/tp, h], as there.
        targets: [...] int64, as there.
        tp_group: ranks that hold the shards of the vocabulary, in order; None if it is not sharded.
        temperature: as there.
        vocab_size: entries without padding; None for no padding.
        with_entropy_t1: whether to compute the entropy at temperature 1 too.
        with_squares: whether to compute the sums of squared probabilities.
        chunk_tokens: as there.

    Returns:
        float32 (float64 for float64 hidden states), equal on all tp ranks.

    Collectives: tp_group: all-gather [t, 4] in the dtype of the results, with 4 more columns for another temperature
        and 2 more for the squares.
    Gradient: none.

    Raises:
        ValueError: as in `linear_log_probs_and_entropy`.
    """
    vocab, inverse_temperature = _prepare(hidden, weight, targets, temperature, vocab_size, chunk_tokens, tp_group)
    is_at_t1 = isinstance(temperature, float | int) and temperature == 1.0
    readings = [(inverse_temperature, with_squares)]
    if with_entropy_t1 and not is_at_t1:
        readings.append((1.0, False))
    read = _read(_flat(hidden), weight, targets.reshape(-1), vocab, readings, chunk_tokens, tp_group)
    found, entropy_t1 = read[0], read[-1].entropy if with_entropy_t1 else None
    values = (found.log_probs, found.entropy, entropy_t1, found.square_sum, found.square_log_sum)
    return LinearSums(*(None if value is None else value.view(targets.shape) for value in values))  # type: ignore[arg-type]


class _LinearLogProbsAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab: VocabRange,
        inverse_temperature: float | Tensor,
        entropy_grad: bool,
        chunk_tokens: int,
        tp_group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        readings = [(inverse_temperature, False)]
        (found,) = _read(_flat(hidden), weight, targets.reshape(-1), vocab, readings, chunk_tokens, tp_group)
        log_probs, entropy = found.log_probs.view(targets.shape), found.entropy.view(targets.shape)
        ctx.save_for_backward(hidden, weight, targets, found.maximum, found.sum_exp, entropy)
        ctx.vocab, ctx.inverse_temperature = vocab, inverse_temperature
        ctx.chunk_tokens, ctx.tp_group = chunk_tokens, tp_group
        ctx.set_materialize_grads(False)
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, maximum, sum_exp, entropy = ctx.saved_tensors
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(entropy)
        inverse_temperature = ctx.inverse_temperature
        coefficients = gradient_coefficients(
            maximum, sum_exp, entropy, grad_log_probs, grad_entropy, inverse_temperature
        )
        flat, flat_targets = _flat(hidden), targets.reshape(-1)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(flat) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=compute_dtype(weight.dtype)) if needs_weight else None
        for rows, logits in _chunks(flat, weight, ctx.chunk_tokens):
            own = GradientCoefficients(*(None if factor is None else factor[rows] for factor in coefficients))  # type: ignore[arg-type]
            # In place of the logits, which nobody needs again.
            write_gradient(logits, logits, flat_targets[rows], own, ctx.vocab, _part(inverse_temperature, rows))
            if grad_hidden is not None:
                torch.mm(logits, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_product(grad_weight, logits, flat[rows], step=ctx.chunk_tokens)
        if grad_hidden is not None:
            grad_hidden = all_reduce_sum(grad_hidden, group=ctx.tp_group).view(hidden.shape)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _prepare(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    vocab_size: int | None,
    chunk_tokens: int,
    tp_group: ProcessGroup | None,
) -> tuple[VocabRange, float | Tensor]:
    if hidden.dim() == 0 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise ValueError(
            f"hidden states are {hidden.dtype} {tuple(hidden.shape)} and the weight is {weight.dtype} "
            f"{tuple(weight.shape)}, but must be [..., h] and [v/tp, h] of one dtype"
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}, but must be at least 1")
    # A view of one number stands for the logits, of which only shape and dtype are looked at.
    logits = hidden.new_empty(()).expand(*hidden.shape[:-1], weight.shape[0])
    return prepare(logits, targets, temperature, vocab_size, tp_group)


def _read(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab: VocabRange,
    readings: Sequence[tuple[float | Tensor, bool]],
    chunk_tokens: int,
    tp_group: ProcessGroup | None,
) -> list[RowStatistics]:
    """Statistics of each row [t] for each (inverse temperature, whether with squares), in one message."""
    own = [
        torch.cat(
            [
                shard_statistics(logits, targets[rows], vocab, _part(inverse, rows), with_squares=with_squares)
                for inverse, with_squares in readings
            ],
            dim=1,
        )
        for rows, logits in _chunks(hidden, weight, chunk_tokens)
    ]
    shards = all_gather(torch.cat(own), group=tp_group)
    widths = [6 if with_squares else 4 for _, with_squares in readings]
    return [
        combine(part, targets, vocab, inverse)
        for part, (inverse, _) in zip(shards.split(widths, dim=-1), readings, strict=True)
    ]


def _chunks(hidden: Tensor, weight: Tensor, chunk_tokens: int) -> Iterator[tuple[slice, Tensor]]:
    """Slices of rows, each with its logits in memory that the next slice overwrites; one empty slice of no rows."""
    num_rows = len(hidden)
    buffer = hidden.new_empty(min(chunk_tokens, num_rows), len(weight))
    for start in range(0, max(1, num_rows), chunk_tokens):
        rows = slice(start, min(start + chunk_tokens, num_rows))
        yield rows, torch.mm(hidden[rows], weight.t(), out=buffer[: rows.stop - start])


def _add_product(total: Tensor, grad_logits: Tensor, hidden: Tensor, *, step: int) -> None:
    """Add grad_logits^T hidden to total [v/tp, h], a few rows at a time: in bfloat16 the product is another tensor."""
    for start in range(0, len(total), step):
        total[start : start + step] += grad_logits[:, start : start + step].t() @ hidden


def _flat(hidden: Tensor) -> Tensor:
    return hidden.detach().reshape(-1, hidden.shape[-1])


def _part(inverse_temperature: float | Tensor, rows: slice) -> float | Tensor:
    return inverse_temperature[rows] if isinstance(inverse_temperature, torch.Tensor) else inverse_temperature

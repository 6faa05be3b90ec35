"""Sums over a sharded vocabulary that say what a gradient step on the logits does to the entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from megacov.ops.vocab_arguments import prepare
from megacov.ops.vocab_statistics import row_statistics

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


class VocabSums(NamedTuple):
    """Of each position, [...] detached, with p = softmax(logits / temperature).

    log_probs, entropy: as `vocab_parallel_log_probs_and_entropy` gives them, bit for bit. [nats]
    square_sum: sum_v p_v^2, the probability that two draws are equal.
    square_log_sum: sum_v p_v^2 log p_v. [nats]
    """

    log_probs: Tensor
    entropy: Tensor
    square_sum: Tensor
    square_log_sum: Tensor


@torch.no_grad()
def vocab_parallel_sums(
    vocab_parallel_logits: Tensor,
    targets: Tensor,
    *,
    tp_group: ProcessGroup | None,
    temperature: float | Tensor = 1.0,
    vocab_size: int | None = None,
) -> VocabSums:
    """Log-probs and entropy, and the two sums of squared probabilities that a gradient step's effect on entropy needs.

    It is the same pass over the logits with two more running sums; see `megacov.monitor.theorem`.

    Args:
        vocab_parallel_logits: [..., v/tp] of any float dtype, read only.
        targets: [...] int64, global vocabulary ids, equal on all tp ranks.
        tp_group: ranks that hold the shards of the vocabulary, in order; None if it is not sharded.
        temperature: as in `vocab_parallel_log_probs_and_entropy`.
        vocab_size: entries without padding; None for no padding.

    Returns:
        float32 (float64 for float64 logits), equal on all tp ranks.

    Collectives: tp_group: all-gather [t, 6] in the dtype of the results.
    Gradient: none.

    Raises:
        ValueError: as in `vocab_parallel_log_probs_and_entropy`.
    """
    vocab, inverse_temperature = prepare(vocab_parallel_logits, targets, temperature, vocab_size, tp_group)
    found = row_statistics(
        vocab_parallel_logits.reshape(-1, vocab_parallel_logits.shape[-1]),
        targets.reshape(-1),
        vocab,
        inverse_temperature,
        with_squares=True,
        tp_group=tp_group,
    )
    assert found.square_sum is not None and found.square_log_sum is not None
    values = (found.log_probs, found.entropy, found.square_sum, found.square_log_sum)
    return VocabSums(*(value.view(targets.shape) for value in values))

"""Log-probs under a distribution without its improbable entries (min-p), over a sharded vocabulary.

Shapes: t positions laid flat, h hidden size, v padded vocabulary, v/tp the columns of one rank's shard, tp ranks.

What is kept depends on the largest logit of the whole vocabulary, so a position costs two messages and two passes over
its logits: one for the maximum, one for the sum of what is kept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from megacov.ops.linear_log_probs import CHUNK_TOKENS
from megacov.ops.row_blocks import compute_dtype, row_blocks
from megacov.ops.vocab_arguments import prepare
from megacov.ops.vocab_statistics import of_rows, widen
from megacov.parallel.collectives import all_gather

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


@torch.no_grad()
def vocab_parallel_min_p_log_probs(
    vocab_parallel_logits: Tensor,
    targets: Tensor,
    *,
    min_p: float,
    tp_group: ProcessGroup | None,
    temperature: float | Tensor = 1.0,
    vocab_size: int | None = None,
) -> Tensor:
    """Log-prob of each target where entries less probable than min_p times the most probable one are left out.

    With p = softmax(logits / temperature) and the kept entries K = {v: p_v >= min_p max_u p_u}:

        log_prob = log p_target - log sum_{v in K} p_v      if the target is in K
        log_prob = -inf                                     otherwise

    See "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs" (arXiv 2407.01082).

    Args:
        vocab_parallel_logits: [..., v/tp] of any float dtype, read only; computed in float32 (float64 for float64).
        targets: [...] int64, global vocabulary ids, equal on all tp ranks.
        min_p: share of the largest probability, in (0, 1].
        tp_group: ranks that hold the shards of the vocabulary, in order; None if it is not sharded.
        temperature: as in `vocab_parallel_log_probs_and_entropy`.
        vocab_size: entries without padding; None for no padding.

    Returns:
        [...] float32 (float64 for float64 logits), equal on all tp ranks; NaN where a logit is NaN, or where all are
        -inf.

    Collectives: tp_group: all-gather [t]; all-gather [t, 2]; in the dtype of the result.
    Gradient: none.

    Raises:
        ValueError: min_p is out of its range, or as in `vocab_parallel_log_probs_and_entropy`.
    """
    if not 0 < min_p <= 1:
        raise ValueError(f"min_p is {min_p}, but must be a share: 0 < min_p <= 1")
    vocab, inverse_temperature = prepare(vocab_parallel_logits, targets, temperature, vocab_size, tp_group)
    logits = vocab_parallel_logits.reshape(-1, vocab_parallel_logits.shape[-1])
    columns, is_held = vocab.locate(targets.reshape(-1))
    real = logits[:, : vocab.num_valid]
    nothing = logits.new_full((len(logits), 1), -math.inf, dtype=compute_dtype(logits.dtype))
    own_maximum = nothing[:, 0] if vocab.num_valid == 0 else real.amax(1).to(nothing.dtype)
    maximum = all_gather(own_maximum, group=tp_group).amax(0).unsqueeze(1)
    kept = _kept_sums(real, maximum, inverse_temperature, math.log(min_p)) if real.numel() else nothing[:, 0].exp()
    at_target = logits.gather(1, columns.unsqueeze(1)).to(nothing.dtype)
    factor = inverse_temperature.unsqueeze(1) if isinstance(inverse_temperature, torch.Tensor) else inverse_temperature
    shifted = (at_target - maximum).mul(factor).squeeze(1).where(is_held, -math.inf)
    sums, shifts = all_gather(torch.stack([kept, shifted], 1), group=tp_group).unbind(-1)
    total, target = sums.sum(0), shifts.amax(0)
    # A total of NaN stays NaN also where the target is left out.
    return torch.where(target >= math.log(min_p), target, total * -math.inf).sub(total.log()).view(targets.shape)


def _kept_sums(logits: Tensor, maximum: Tensor, inverse_temperature: float | Tensor, lowest: float) -> Tensor:
    """[t]: sum of exp(s_v) over s_v >= lowest, with s_v = (logit_v - maximum) / temperature. logits: [t, v]."""
    sums = []
    for rows, shifted, exp in row_blocks(logits):
        block = widen(logits[rows], out=shifted)
        # In nats, not in bits: the target's own shift is compared with the same threshold, and must round alike.
        torch.sub(block, maximum[rows], out=shifted).mul_(of_rows(inverse_temperature, rows))
        torch.exp(shifted, out=exp)
        sums.append(exp.masked_fill_(shifted < lowest, 0.0).sum(1))
    return torch.cat(sums)


@torch.no_grad()
def linear_min_p_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    min_p: float,
    tp_group: ProcessGroup | None,
    temperature: float | Tensor = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """The same from hidden states, with logits = hidden @ weight^T, of which a chunk of positions exists at a time.

    Args:
        hidden: [t, h] of any float dtype, equal on all tp ranks, read only.
        weight: [v/tp, h] in the same dtype, this rank's shard of the output layer, read only.
        targets: [t] int64, global vocabulary ids, equal on all tp ranks.
        min_p: as in `vocab_parallel_min_p_log_probs`.
        tp_group: as there.
        temperature: as there; one for all, or [t].
        vocab_size: as there.
        chunk_tokens: positions whose logits exist at a time, at least 1.

    Returns:
        [t], as there.

    Collectives: tp_group: for each chunk, those of `vocab_parallel_min_p_log_probs`.
    Gradient: none.

    Raises:
        ValueError: as in `vocab_parallel_min_p_log_probs`.
    """
    chunks = [slice(start, start + chunk_tokens) for start in range(0, max(1, len(hidden)), chunk_tokens)]
    return torch.cat(
        [
            vocab_parallel_min_p_log_probs(
                hidden[rows] @ weight.t(),
                targets[rows],
                min_p=min_p,
                tp_group=tp_group,
                temperature=temperature[rows] if isinstance(temperature, torch.Tensor) else temperature,
                vocab_size=vocab_size,
            )
            for rows in chunks
        ]
    )

"""Log-prob of each target and entropy of each position from logits whose vocabulary is sharded over ranks.

Shapes: t positions laid flat, v padded vocabulary, v/tp the columns of one rank's shard, tp ranks.

Both results come from one pass over the logits, in vocab_statistics.py. The backward pass recomputes the probabilities
from the logits instead of keeping them. Both passes work through blocks of rows that fit into a cache, so no tensor of
the size of the logits exists beside the logits and their gradient, which may take their place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from megacov.ops.vocab_arguments import prepare
from megacov.ops.vocab_gradient import gradient_coefficients, write_gradient
from megacov.ops.vocab_statistics import row_statistics

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from megacov.ops.vocab_range import VocabRange


def vocab_parallel_log_probs_and_entropy(
    vocab_parallel_logits: Tensor,
    targets: Tensor,
    *,
    tp_group: ProcessGroup | None,
    temperature: float | Tensor = 1.0,
    entropy_grad: bool = False,
    vocab_size: int | None = None,
    overwrites_logits: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each position, over a sharded vocabulary.

    With z = logits / temperature and p = softmax(z) over the whole vocabulary without its padding:
    log_prob = z_target - logsumexp(z), entropy = -sum_v p_v log p_v = logsumexp(z) - sum_v p_v z_v.
    A logit of -inf has probability 0 and adds nothing to the entropy.

    Args:
        vocab_parallel_logits: [..., v/tp] of any float dtype, read only; computed in float32 (float64 for float64).
            No copy is made if the leading dimensions can be viewed as one.
        targets: [...] int64, global vocabulary ids, equal on all tp ranks.
        tp_group: ranks that hold the shards of the vocabulary, in order; None if it is not sharded.
        temperature: positive divisor of the logits; one for all, or [...] float64 with one for each position, equal on
            all tp ranks and read only.
        entropy_grad: whether a gradient flows through the entropy.
        vocab_size: entries without padding; ids from there on have probability 0 and gradient 0. None for no padding.
        overwrites_logits: whether backward writes the gradient over the logits, which saves as much memory as they
            take. Nothing may read them afterwards: autograd refuses what it knows of, such as a second backward.
            Logits that are not contiguous are left alone all the same.

    Returns:
        log_probs: [...] float32 (float64 for float64 logits), equal on all tp ranks.
        entropy: [...] in the same dtype, in nats at this temperature, equal on all tp ranks.

    Collectives: tp_group: all-gather [t, 4] in the dtype of the results. None in backward.
    Gradient: to the logits through log_probs; through entropy only if entropy_grad. In the logits' dtype, newly
        allocated unless overwrites_logits. Not differentiable twice.

    Raises:
        ValueError: if shapes or dtypes do not fit, the temperature is not positive, the shards cannot hold
            vocab_size entries, a target is outside the vocabulary, or logits to overwrite are a leaf of autograd,
            whose values belong to the caller. Targets are not checked on a GPU, because that would wait for the
            device; such a target's log-prob is NaN there. Nor are single temperatures.
    """
    if overwrites_logits and vocab_parallel_logits.requires_grad and vocab_parallel_logits.is_leaf:
        raise ValueError("logits that are a leaf cannot be overwritten with their gradient")
    vocab, inverse_temperature = prepare(vocab_parallel_logits, targets, temperature, vocab_size, tp_group)
    log_probs, entropy = _LogProbsAndEntropy.apply(
        vocab_parallel_logits, targets, vocab, inverse_temperature, entropy_grad, overwrites_logits, tp_group
    )
    return log_probs, entropy


class _LogProbsAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        vocab: VocabRange,
        inverse_temperature: float | Tensor,
        entropy_grad: bool,
        overwrites_logits: bool,
        tp_group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        found = row_statistics(
            logits.reshape(-1, logits.shape[-1]),
            targets.reshape(-1),
            vocab,
            inverse_temperature,
            with_squares=False,
            tp_group=tp_group,
        )
        log_probs, entropy = found.log_probs.view(targets.shape), found.entropy.view(targets.shape)

        ctx.save_for_backward(logits, targets, found.maximum, found.sum_exp, entropy)
        ctx.vocab, ctx.inverse_temperature = vocab, inverse_temperature
        ctx.overwrites_logits = overwrites_logits and logits.is_contiguous()
        ctx.set_materialize_grads(False)
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, targets, maximum, sum_exp, entropy = ctx.saved_tensors
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(entropy)
        coefficients = gradient_coefficients(
            maximum, sum_exp, entropy, grad_log_probs, grad_entropy, ctx.inverse_temperature
        )
        if ctx.overwrites_logits:
            grad_logits = logits.detach()
            increment_version(grad_logits)  # a kernel's writes would escape autograd
        else:
            # Contiguous, so that its rows can be written through a view.
            grad_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
        num_columns = logits.shape[-1]
        write_gradient(
            grad_logits.view(-1, num_columns),
            logits.reshape(-1, num_columns),
            targets.reshape(-1),
            coefficients,
            ctx.vocab,
            ctx.inverse_temperature,
        )
        return grad_logits, None, None, None, None, None, None

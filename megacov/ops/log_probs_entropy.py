"""Log-prob of each target and entropy of each position from logits whose vocabulary is sharded over ranks.

Shapes: t positions laid flat, v padded vocabulary, v/tp the columns of one rank's shard, tp ranks.

Both results come from one pass over the logits. A rank reduces each row of its shard to four numbers; one all-gather
exchanges them, and each rank combines them in rank order, so that all ranks hold the same bits. The backward pass
recomputes the probabilities from the logits instead of keeping them. Both passes work through blocks of rows that fit
into a cache, so no tensor of the size of the logits exists beside the logits and their gradient.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from megacov.ops.row_blocks import compute_dtype, row_blocks
from megacov.ops.vocab_range import VocabRange
from megacov.parallel.collectives import all_gather

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

# exp(_LOWEST_SHIFT) is 0 in float32 and float64, so raising a shifted logit of -inf to it changes no probability. In
# the entropy it turns 0 * -inf, which is NaN, into 0 * finite.
_LOWEST_SHIFT = -1e4

_MAXIMUM, _SUM_EXP, _WEIGHTED, _TARGET = range(4)


def vocab_parallel_log_probs_and_entropy(
    vocab_parallel_logits: Tensor,
    targets: Tensor,
    *,
    tp_group: ProcessGroup | None,
    temperature: float | Tensor = 1.0,
    entropy_grad: bool = False,
    vocab_size: int | None = None,
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

    Returns:
        log_probs: [...] float32 (float64 for float64 logits), equal on all tp ranks.
        entropy: [...] in the same dtype, in nats at this temperature, equal on all tp ranks.

    Collectives: tp_group: all-gather [t, 4] in the dtype of the results. None in backward.
    Gradient: to the logits through log_probs; through entropy only if entropy_grad. In the logits' dtype, newly
        allocated. Not differentiable twice.

    Raises:
        ValueError: if shapes or dtypes do not fit, the temperature is not positive, the shards cannot hold
            vocab_size entries, or a target is outside the vocabulary. Targets are not checked on a GPU, because
            that would wait for the device; such a target's log-prob is NaN there. Nor are single temperatures.
    """
    _check_arguments(vocab_parallel_logits, targets, temperature)
    vocab = VocabRange.of_shard(vocab_parallel_logits.shape[-1], tp_group=tp_group, vocab_size=vocab_size)
    if targets.device.type == "cpu":
        _check_targets(targets, vocab.vocab_size)
    inverse_temperature = _inverse(temperature, vocab_parallel_logits)
    log_probs, entropy = _LogProbsAndEntropy.apply(
        vocab_parallel_logits, targets, vocab, inverse_temperature, entropy_grad, tp_group
    )
    return log_probs, entropy


def _inverse(temperature: float | Tensor, logits: Tensor) -> float | Tensor:
    """1 / temperature: a number, or [t] in the compute dtype."""
    if not isinstance(temperature, torch.Tensor):
        return 1.0 / temperature
    # Rounded once, as a number is where it meets float32, so that equal temperatures give the same bits in both forms.
    return temperature.detach().double().reciprocal().to(compute_dtype(logits.dtype)).reshape(-1)


class _LogProbsAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        vocab: VocabRange,
        inverse_temperature: float | Tensor,
        entropy_grad: bool,
        tp_group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        shard_statistics = _shard_statistics(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), vocab, inverse_temperature
        )
        maximum, sum_exp, log_probs, entropy = _combine(
            all_gather(shard_statistics, group=tp_group), inverse_temperature
        )
        is_real = (targets >= 0) & (targets < vocab.vocab_size)
        log_probs = log_probs.view(targets.shape).where(is_real, math.nan)
        entropy = entropy.view(targets.shape)

        ctx.save_for_backward(logits, targets, maximum, sum_exp, entropy)
        ctx.vocab, ctx.inverse_temperature = vocab, inverse_temperature
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
        coefficients = _gradient_coefficients(
            maximum, sum_exp, entropy, grad_log_probs, grad_entropy, ctx.inverse_temperature
        )
        # Contiguous, so that its rows can be written through a view.
        grad_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
        num_columns = logits.shape[-1]
        _write_gradient(
            grad_logits.view(-1, num_columns),
            logits.reshape(-1, num_columns),
            targets.reshape(-1),
            coefficients,
            ctx.vocab,
            ctx.inverse_temperature,
        )
        return grad_logits, None, None, None, None, None


def _shard_statistics(
    logits: Tensor, targets: Tensor, vocab: VocabRange, inverse_temperature: float | Tensor
) -> Tensor:
    """[t, 4]: four numbers for each row of this shard [t, v/tp], from which all ranks compute the results.

    With m the largest logit and s_v = (logit_v - m) / temperature, both over the real entries of the shard:
    m, sum_v exp(s_v), sum_v exp(s_v) s_v, and the target's logit, -inf where another shard holds it.
    """
    dtype = compute_dtype(logits.dtype)
    statistics = logits.new_empty((logits.shape[0], 4), dtype=dtype)
    columns, is_held = vocab.locate(targets)
    target_logits = logits.gather(1, columns.unsqueeze(1)).squeeze(1).to(dtype)
    statistics[:, _TARGET] = target_logits.where(is_held, -math.inf)
    lowest = torch.finfo(dtype).min
    if vocab.num_valid == 0:
        statistics[:, _MAXIMUM] = lowest
        statistics[:, _SUM_EXP : _WEIGHTED + 1] = 0.0
        return statistics

    logits = logits[:, : vocab.num_valid]
    for rows, shifted, exp in row_blocks(logits):
        block = _widen(logits[rows], out=shifted)
        # A row of nothing but -inf gets a finite maximum, because -inf - -inf is NaN.
        maximum = block.amax(1, keepdim=True).clamp_(min=lowest)
        _shift(block, maximum, _of_rows(inverse_temperature, rows), out=shifted).clamp_(min=_LOWEST_SHIFT)
        torch.exp(shifted, out=exp)
        statistics[rows, _MAXIMUM] = maximum.squeeze(1)
        statistics[rows, _SUM_EXP] = exp.sum(1)
        statistics[rows, _WEIGHTED] = exp.mul_(shifted).sum(1)
    return statistics


def _combine(statistics: Tensor, inverse_temperature: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Global statistics of each row from those of all shards [tp, t, 4]: maximum, sum_exp, log_probs, entropy."""
    maxima, sums, weighted, target_logits = statistics.unbind(-1)
    maximum = maxima.amax(0)
    offset = ((maxima - maximum) * inverse_temperature).clamp_(min=_LOWEST_SHIFT)
    scale = offset.exp()
    sum_exp = (sums * scale).sum(0)
    log_sum_exp = sum_exp.log()
    log_probs = (target_logits.amax(0) - maximum) * inverse_temperature - log_sum_exp
    entropy = log_sum_exp - ((weighted + sums * offset) * scale).sum(0) / sum_exp
    return maximum, sum_exp, log_probs, entropy


class _GradientCoefficients(NamedTuple):
    """Numbers [t, 1] that, with s_v = (logit_v - maximum) / temperature, give each row of the gradient:

    gradient_v = exp(s_v) (constant + slope s_v) + [v is target] at_target.
    """

    maximum: Tensor
    constant: Tensor
    slope: Tensor | None
    at_target: Tensor


def _gradient_coefficients(
    maximum: Tensor,
    sum_exp: Tensor,
    entropy: Tensor,
    grad_log_probs: Tensor,
    grad_entropy: Tensor | None,
    inverse_temperature: float | Tensor,
) -> _GradientCoefficients:
    """Factors constant over a row in d lp / d z_v = [v is target] - p_v and d H / d z_v = -p_v (log p_v + H).

    p_v = exp(s_v) / sum_exp and log p_v = s_v - log(sum_exp), with s_v as in _GradientCoefficients.
    """
    at_target = grad_log_probs.reshape(-1) * inverse_temperature
    constant, slope = at_target, None
    if grad_entropy is not None:
        entropy_weight = grad_entropy.reshape(-1) * inverse_temperature
        constant = constant + entropy_weight * (entropy.reshape(-1) - sum_exp.log())
        slope = (-entropy_weight / sum_exp).unsqueeze(1)
    return _GradientCoefficients(
        maximum.unsqueeze(1), (-constant / sum_exp).unsqueeze(1), slope, at_target.unsqueeze(1)
    )


def _write_gradient(
    grad_logits: Tensor,
    logits: Tensor,
    targets: Tensor,
    coefficients: _GradientCoefficients,
    vocab: VocabRange,
    inverse_temperature: float | Tensor,
) -> None:
    """Overwrite grad_logits [t, v/tp], which may be uninitialised, with the gradient of this shard."""
    grad_logits[:, vocab.num_valid :] = 0
    if vocab.num_valid == 0:
        return
    columns, is_held = vocab.locate(targets)
    at_target = coefficients.at_target.where(is_held.unsqueeze(1), 0.0)
    logits, grad_logits = logits[:, : vocab.num_valid], grad_logits[:, : vocab.num_valid]
    for rows, gradient, exp in row_blocks(logits):
        block = _widen(logits[rows], out=gradient)
        _shift(block, coefficients.maximum[rows], _of_rows(inverse_temperature, rows), out=gradient)
        if coefficients.slope is None:
            gradient.exp_().mul_(coefficients.constant[rows])
        else:
            torch.exp(gradient.clamp_(min=_LOWEST_SHIFT), out=exp)
            gradient.mul_(coefficients.slope[rows]).add_(coefficients.constant[rows]).mul_(exp)
        # Added before the cast: at a likely target the two terms nearly cancel, and bf16 would lose the difference.
        gradient.scatter_add_(1, columns[rows].unsqueeze(1), at_target[rows])
        grad_logits[rows] = gradient


def _widen(block: Tensor, *, out: Tensor) -> Tensor:
    """The block in the dtype of `out`: the block itself if it has that dtype, otherwise a copy in `out`."""
    return block if block.dtype == out.dtype else out.copy_(block)


def _shift(block: Tensor, maximum: Tensor, inverse_temperature: float | Tensor, *, out: Tensor) -> Tensor:
    """(block - maximum) / temperature; block and out may be the same memory."""
    torch.sub(block, maximum, out=out)
    if isinstance(inverse_temperature, float) and inverse_temperature == 1.0:
        return out
    return out.mul_(inverse_temperature)


def _of_rows(inverse_temperature: float | Tensor, rows: slice) -> float | Tensor:
    """The factor of a block of rows: a number, or [rows, 1]."""
    if isinstance(inverse_temperature, torch.Tensor):
        return inverse_temperature[rows].unsqueeze(1)
    return inverse_temperature


def _check_arguments(logits: Tensor, targets: Tensor, temperature: float | Tensor) -> None:
    if not logits.is_floating_point() or logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"logits are {logits.dtype} {tuple(logits.shape)}, but must be float [..., v/tp] with v/tp > 0"
        )
    if targets.dtype != torch.int64 or targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets are {targets.dtype} {tuple(targets.shape)}, "
            f"but logits {tuple(logits.shape)} need int64 {tuple(logits.shape[:-1])}"
        )
    if isinstance(temperature, torch.Tensor):
        _check_temperatures(temperature, targets)
    elif not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}, but must be positive and finite")


def _check_temperatures(temperatures: Tensor, targets: Tensor) -> None:
    if not temperatures.is_floating_point() or temperatures.shape != targets.shape:
        raise ValueError(f"temperatures {tuple(temperatures.shape)} are no floats for targets {tuple(targets.shape)}")
    if temperatures.device.type == "cpu" and not ((temperatures > 0) & temperatures.isfinite()).all():
        raise ValueError("a temperature is not positive and finite")


def _check_targets(targets: Tensor, vocab_size: int) -> None:
    """All tp ranks hold equal targets, so they reach the same verdict without a collective."""
    is_outside = (targets < 0) | (targets >= vocab_size)
    if is_outside.any():
        raise ValueError(
            f"target {int(targets[is_outside][0])} is outside the vocabulary of {vocab_size} entries; "
            "check that the tokenizer belongs to this model"
        )

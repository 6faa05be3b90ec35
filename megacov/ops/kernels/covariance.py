"""The covariance of each token in two kernels: one adds up what the means are made of, one writes the covariances.

The sums are those of ops/masked.py: every value is split into two parts that float64 adds without rounding, so that
neither the order within a program nor the number of programs changes a bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from megacov.ops import masked

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 2048
NUM_WARPS = 16
_MAX_PROGRAMS = 1024

_COARSE = tl.constexpr(masked.COARSE)
_FINE = tl.constexpr(masked.FINE)
# The nearest multiple of one to x, halves to even, is (x + this) - this, up to the bound.
_TO_INTEGER = tl.constexpr(1.5 * 2.0**52)
_TO_INTEGER_BOUND = tl.constexpr(2.0**51)


def mean_parts(log_probs: Tensor, advantages: Tensor, kept_mask: Tensor) -> Tensor:
    """This rank's share of what both means are made of.

    Args:
        log_probs: [t] float; read only.
        advantages: [t] float; read only.
        kept_mask: [t] bool.

    Returns:
        [5] float64: coarse and fine part of the log-probs, the same of the advantages, and the number of kept tokens.

    Collectives: none.
    Gradient: none.
    """
    num_programs = max(1, min(triton.cdiv(log_probs.shape[0], BLOCK), _MAX_PROGRAMS))
    partial_sums = log_probs.new_empty((5, num_programs), dtype=torch.float64)
    with torch.cuda.device_of(log_probs):
        add_parts[(num_programs,)](
            log_probs.detach().contiguous(),
            advantages.detach().contiguous(),
            kept_mask.contiguous(),
            partial_sums,
            log_probs.shape[0],
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return partial_sums.sum(1)


def write_covariance(log_probs: Tensor, advantages: Tensor, kept_mask: Tensor, *, means: Tensor) -> Tensor:
    """The product of both centred values.

    Args:
        log_probs: [t] float; read only.
        advantages: [t] float; read only.
        kept_mask: [t] bool.
        means: [2] float64, of the log-probs and of the advantages.

    Returns:
        [t] float32, 0 outside the mask.

    Collectives: none.
    Gradient: none.
    """
    found = log_probs.new_empty(log_probs.shape, dtype=torch.float32)
    with torch.cuda.device_of(log_probs):
        multiply_centred[(triton.cdiv(max(1, log_probs.shape[0]), BLOCK),)](
            log_probs.detach().contiguous(),
            advantages.detach().contiguous(),
            kept_mask.contiguous(),
            means,
            found,
            log_probs.shape[0],
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return found


@triton.jit
def to_integer(values):
    rounded = (values + _TO_INTEGER) - _TO_INTEGER
    return tl.where(tl.abs(values) < _TO_INTEGER_BOUND, rounded, values)


@triton.jit
def add_parts(log_probs, advantages, kept_mask, partial_sums, num_tokens, BLOCK: tl.constexpr):
    coarse = tl.zeros((BLOCK,), tl.float64)
    fine = tl.zeros((BLOCK,), tl.float64)
    other_coarse = tl.zeros((BLOCK,), tl.float64)
    other_fine = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.int32)
    for first in range(tl.program_id(0) * BLOCK, num_tokens, tl.num_programs(0) * BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        is_kept = tl.load(kept_mask + tokens, mask=tokens < num_tokens, other=0) != 0
        values = tl.load(log_probs + tokens, mask=is_kept, other=0.0).to(tl.float64)
        part = to_integer(values * _COARSE) / _COARSE
        coarse += part
        fine += to_integer((values - part) * _FINE) / _FINE
        values = tl.load(advantages + tokens, mask=is_kept, other=0.0).to(tl.float64)
        part = to_integer(values * _COARSE) / _COARSE
        other_coarse += part
        other_fine += to_integer((values - part) * _FINE) / _FINE
        count += is_kept.to(tl.int32)
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    tl.store(partial_sums + program, tl.sum(coarse, 0))
    tl.store(partial_sums + num_programs + program, tl.sum(fine, 0))
    tl.store(partial_sums + 2 * num_programs + program, tl.sum(other_coarse, 0))
    tl.store(partial_sums + 3 * num_programs + program, tl.sum(other_fine, 0))
    tl.store(partial_sums + 4 * num_programs + program, tl.sum(count, 0).to(tl.float64))


@triton.jit
def multiply_centred(log_probs, advantages, kept_mask, means, found, num_tokens, BLOCK: tl.constexpr):
    tokens = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_token = tokens < num_tokens
    is_kept = tl.load(kept_mask + tokens, mask=is_token, other=0) != 0
    centred = tl.load(log_probs + tokens, mask=is_kept, other=0.0).to(tl.float64) - tl.load(means)
    centred_advantages = tl.load(advantages + tokens, mask=is_kept, other=0.0).to(tl.float64) - tl.load(means + 1)
    cov = tl.where(is_kept, (centred * centred_advantages).to(tl.float32), 0.0)
    tl.store(found + tokens, cov, mask=is_token)

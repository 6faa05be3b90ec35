"""Integers with the order of the scores, so that a radix select can work on their digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_SORTED_AS = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.int64: torch.int64,
}


def sort_keys(scores: Tensor) -> tuple[Tensor, int]:
    """Signed integers in the order of the scores, and their number of bits.

    -0.0 and +0.0 have the same key. Every NaN has the smallest key, below that of -inf.

    Args:
        scores: [...] float16, bfloat16, float32, float64 or int64; read only.

    Returns:
        keys: [...] int64 in [-2**(num_bits - 1), 2**(num_bits - 1)).
        num_bits: 32 or 64; it depends only on the dtype.

    Raises:
        ValueError: if the dtype is none of these.
    """
    if scores.dtype not in _SORTED_AS:
        raise ValueError(f"scores are {scores.dtype}, but must be float16, bfloat16, float32, float64 or int64")
    scores = scores.detach().to(_SORTED_AS[scores.dtype])
    num_bits = 8 * scores.dtype.itemsize
    if scores.dtype == torch.int64:
        return scores, num_bits
    # IEEE floats are sign and magnitude; flipping the magnitude bits of negative numbers gives two's complement.
    # Adding zero turns -0.0 into +0.0.
    bits = (scores + 0.0).view(torch.int32 if num_bits == 32 else torch.int64)
    keys = bits ^ ((bits >> (num_bits - 1)) & ((1 << (num_bits - 1)) - 1))
    return keys.masked_fill_(scores.isnan(), -(1 << (num_bits - 1))).long(), num_bits


def values_of(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo `sort_keys`.

    Args:
        keys: [...] int64, made of scores of this dtype.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        [...] float64: +0.0 for either zero, NaN for any NaN.
    """
    sorted_as = _SORTED_AS[dtype]
    num_bits = 8 * sorted_as.itemsize
    # The map flips the same bits both ways, since it keeps the sign.
    bits = keys ^ ((keys >> (num_bits - 1)) & ((1 << (num_bits - 1)) - 1))
    return bits.to(torch.int32 if num_bits == 32 else torch.int64).view(sorted_as).double()

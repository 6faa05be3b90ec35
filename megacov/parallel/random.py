"""Counter-based random numbers: a value depends on (seed, update, token id) and on nothing else.

A token's number does not depend on its rank, its micro-batch or the order of evaluation, so a random choice is the same
in every parallel layout. The generator is splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), whose n-th output can be computed directly from n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_INT64_MAX = (1 << 63) - 1


def hash_64(seed: int, update: int, token_ids: Tensor) -> Tensor:
    """A uniform 63-bit number for each token, equal on every device.

    The tokens of one (seed, update) read one splitmix64 stream at the position of their id.

    Args:
        seed: any integer; the run's seed.
        update: any integer; the number of the optimizer step, so that each one draws anew.
        token_ids: [...] int64, any value.

    Returns:
        [...] int64 in [0, 2**63).
    """
    key = _mix((_mix(seed & _WORD) + update) & _WORD)
    state = token_ids * _signed(_GOLDEN_GAMMA) + _signed(key)
    state = (state ^ _shift_right(state, 30)) * _signed(_MULTIPLIER_1)
    state = (state ^ _shift_right(state, 27)) * _signed(_MULTIPLIER_2)
    # Without the sign bit, numbers sort the same as signed and as unsigned.
    return (state ^ _shift_right(state, 31)) & _INT64_MAX


def _mix(value: int) -> int:
    """The output function of splitmix64 on the host; spreads small seeds and step counts over 64 bits."""
    value = ((value ^ (value >> 30)) * _MULTIPLIER_1) & _WORD
    value = ((value ^ (value >> 27)) * _MULTIPLIER_2) & _WORD
    return value ^ (value >> 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift; `>>` on int64 copies the sign bit instead."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The int64 with the same bits; products and sums of int64 tensors wrap as unsigned words do."""
    return word - (1 << 64) if word > _INT64_MAX else word

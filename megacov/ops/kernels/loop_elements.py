"""What the loops for a CPU do with one logit, inlined into each loop, and how they ask for memory ahead of time.

numba compiles it. Logits in memory are float32, or uint16 that hold the bits of bfloat16.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from megacov.ops.vocab_statistics import LOWEST_SHIFT

# Logits that a loop takes between two requests for memory.
STRIDE = 128
# Bytes ahead of the loop at which memory is asked for, and those that come at once.
_AHEAD, _LINE = 2048, 64

_LOWEST_SHIFT = np.float32(LOWEST_SHIFT)
_HALF, _ONE = np.float32(0.5), np.float32(1)

# 2^r = 1 + r (C1 + r (C2 + ...)) for |r| <= 1/2. No other coefficients have a smaller largest relative error, 9.2e-8;
# rounded at each step it is 1.7e-7, three roundings of float32.
_C1, _C2, _C3 = np.float32(0.6931469775987171), np.float32(0.2402224208463509), np.float32(0.05550733743574016)
_C4, _C5 = np.float32(0.009671512688151886), np.float32(0.0013264727247198841)
# float32 holds 2^k as k + 127 above 23 bits of fraction. At k = -127 these bits are 0, and so is the power.
_BIAS, _FRACTION_BITS, _LOWEST_POWER = np.int32(127), np.int32(23), np.float32(-127)


def to_float32(element):
    """The number that an element of memory stands for. Only compiled code calls it: numba puts `_to_float32` here."""
    raise NotImplementedError


def from_float32(number, memory):
    """The element of this memory for a number, to nearest with ties to even. Numba puts `_from_float32` here."""
    raise NotImplementedError


@overload(to_float32, inline="always")
def _to_float32(element):
    if element == numba.float32:
        return lambda element: element
    assert element == numba.uint16, f"no loop reads {element}"
    return lambda element: np.uint32(np.uint32(element) << np.uint32(16)).view(np.float32)


@overload(from_float32, inline="always")
def _from_float32(number, memory):
    if memory.dtype == numba.float32:
        return lambda number, memory: number
    assert memory.dtype == numba.uint16, f"no loop writes {memory.dtype}"

    def to_bfloat16(number, memory):
        bits = np.float32(number).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        # The sum above can carry a NaN over into 0.
        return np.uint16(rounded if number == number else np.uint32(0x7FC0))

    return to_bfloat16


@intrinsic
def _prefetch(context, memory, index):
    """Ask for the cache line of an element, which may lie beyond the end; what the processor does by itself is late."""

    def generate(target, builder, signature, arguments):
        array = target.make_array(signature.args[0])(target, builder, arguments[0])
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        address = builder.bitcast(builder.gep(array.data, [arguments[1]]), pointer)
        builder.call(function, [address, number(0), number(3), number(1)])  # to read, into the nearest cache, data
        return target.get_dummy_value()

    return types.void(memory, types.intp), generate


@numba.njit(inline="always")
def ask_for_stride(row, first):
    """Ask for the memory that a loop at this column reads a little later."""
    ahead, line = _AHEAD // row.itemsize, _LINE // row.itemsize
    for column in range(first + ahead, first + ahead + STRIDE, line):
        _prefetch(row, column)


@numba.njit(inline="always")
def shift_in_bits(logit, maximum, bits_per_logit):
    """(logit - maximum) / temperature in bits, not below LOWEST_SHIFT; NaN stays NaN in this order."""
    shift = (logit - maximum) * bits_per_logit
    return _LOWEST_SHIFT if shift < _LOWEST_SHIFT else shift


@numba.njit(inline="always")
def exp2(shift):
    """2^shift for a shift from LOWEST_SHIFT to 0; 0 below -126.5, where float32 loses digits; NaN for NaN."""
    # In this order NaN becomes a number, because to convert NaN to an integer is undefined.
    power = np.int32((shift if shift > _LOWEST_POWER else _LOWEST_POWER) - _HALF)
    rest = shift - np.float32(power)
    fraction = ((((_C5 * rest + _C4) * rest + _C3) * rest + _C2) * rest + _C1) * rest + _ONE
    return fraction * np.int32((power + _BIAS) << _FRACTION_BITS).view(np.float32)


@numba.njit(inline="always")
def gradient_of(logit, maximum, bits_per_logit, constant, slope):
    """exp(s) (constant + slope s) as in `GradientCoefficients`, with the slope per bit."""
    shift = shift_in_bits(logit, maximum, bits_per_logit)
    return exp2(shift) * (slope * shift + constant)

"""What the loops for a CPU do with one logit, against float64 and against torch's conversions."""

import numba
import numpy as np
import torch

from megacov.ops.kernels import loops
from megacov.ops.kernels.loop_elements import exp2, from_float32, to_float32


@numba.njit(fastmath=loops.FAST)
def _exp2(shifts, powers):
    for index in range(len(shifts)):
        powers[index] = exp2(shifts[index])


@numba.njit(fastmath=loops.FAST)
def _narrow(numbers, elements):
    for index in range(len(numbers)):
        elements[index] = from_float32(numbers[index], elements)


@numba.njit(fastmath=loops.FAST)
def _widen(elements, numbers):
    for index in range(len(elements)):
        numbers[index] = to_float32(elements[index])


def test_powers_of_two_are_right_to_four_roundings():
    shifts = np.concatenate([np.linspace(-126, 0, 1_000_003), -np.arange(127.0)]).astype(np.float32)
    powers = np.empty_like(shifts)
    _exp2(shifts, powers)
    expected = np.exp2(shifts.astype(np.float64))
    assert (np.abs(powers - expected) / expected).max() < 2**-22
    assert np.array_equal(powers[-127:], expected[-127:].astype(np.float32)), "whole powers have no error"


def test_powers_below_the_smallest_float_are_0_and_nan_stays():
    shifts = np.array([-127.5, -200, -1e4, np.nan], np.float32)
    powers = np.full_like(shifts, 7)
    _exp2(shifts, powers)
    assert powers[:3].tolist() == [0, 0, 0] and np.isnan(powers[3])


def test_bfloat16_is_rounded_and_read_as_torch_does():
    """All 65,536 bfloat16, the halves between them, which are ties, and what is next to those."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([upper | lower for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).astype(np.uint32)
    numbers, elements = bits.view(np.float32), np.empty(len(bits), np.uint16)
    _narrow(numbers, elements)
    found, expected = torch.from_numpy(elements).view(torch.bfloat16), torch.from_numpy(numbers).to(torch.bfloat16)
    assert torch.equal(found.isnan(), expected.isnan())
    whole = ~expected.isnan()
    assert torch.equal(found[whole].view(torch.int16), expected[whole].view(torch.int16))
    again = np.empty_like(numbers)
    _widen(elements, again)
    assert torch.equal(torch.from_numpy(again)[whole], expected[whole].float())

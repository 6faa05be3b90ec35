"""Checksums of blocks add up to that of their tensor, and any change of one element changes it."""

from __future__ import annotations

import random

import pytest
import torch

from megacov.weight_receiver import megacov_receiver
from megacov.weight_receiver.megacov_receiver import added_up, checksum

torch.set_num_threads(1)
SHAPE = (3, 10, 7)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn)


def tensor_of(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_add_up_in_any_order(dtype, monkeypatch):
    whole = tensor_of(dtype)
    expected = int(checksum(whole, (0, 0, 0), SHAPE))
    sums = [
        checksum(whole[:, first:last, low:high], (0, first, low), SHAPE)
        for first, last in ((0, 4), (4, 5), (5, 10))
        for low, high in ((0, 3), (3, 7))
    ]
    random.Random(1).shuffle(sums)
    assert added_up({"w": sums}) == {"w": expected}
    monkeypatch.setattr(megacov_receiver, "_ELEMENTS_AT_ONCE", 8)
    assert int(checksum(whole, (0, 0, 0), SHAPE)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_flipped_bit_anywhere_shows(dtype):
    whole = tensor_of(dtype)
    expected = int(checksum(whole, (0, 0, 0), SHAPE))
    chance = random.Random(2)
    for _ in range(64):
        changed = whole.clone()
        data = changed.view(-1).view(torch.uint8)
        data[chance.randrange(data.numel())] ^= 1 << chance.randrange(8)
        assert int(checksum(changed, (0, 0, 0), SHAPE)) != expected


def test_places_count():
    whole = tensor_of(torch.float32)
    sums = {
        int(checksum(each, (0, 0, 0), SHAPE)) for each in (whole, whole.flip(1), whole.roll(1, 2), whole.roll(1, 0))
    }
    assert len(sums) == 4


def test_the_sum_is_its_definition():
    """In Python's own integers."""
    values = torch.tensor([[1.5, -2.0], [0.25, 3.0]], dtype=torch.bfloat16)
    total, mask = 0, (1 << 64) - 1

    def signed(number: int) -> int:
        number &= mask
        return number - (1 << 64) if number >> 63 else number

    for row in range(2):
        for column in range(2):
            factor = signed((5 + row) * 9 + (7 + column))
            factor = signed(factor * -7046029254386353131)
            factor = signed((factor ^ (factor >> 29)) * -4658895280553007687)
            bits = int(values[row, column].view(torch.int16))
            total += bits * ((factor ^ (factor >> 32)) | 1)
    assert int(checksum(values, (5, 7), (8, 9))) == signed(total)

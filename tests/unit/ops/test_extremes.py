"""Minimum and maximum over a mask."""

import math

import pytest
import torch

from megacov.ops import masked, masked_extremes


@pytest.fixture(params=[None, 7], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param is not None:
        monkeypatch.setattr(masked, "CPU_BLOCK", request.param)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_are_those_of_the_masked_values(dtype):
    values = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.rand(20, 30, generator=torch.Generator().manual_seed(1)) < 0.3
    mask.view(-1)[values.argmax()] = mask.view(-1)[values.argmin()] = False
    smallest, largest = masked_extremes(values, mask, group=None)
    assert (smallest, largest) == (values[mask].double().min(), values[mask].double().max())


def test_what_is_outside_the_mask_does_not_count_and_a_nan_inside_shows():
    values = torch.tensor([math.nan, 1.0, math.inf])
    assert masked_extremes(values, torch.tensor([False, True, False]), group=None) == (1.0, 1.0)
    assert masked_extremes(values, torch.tensor([False, True, True]), group=None) == (1.0, math.inf)
    assert all(bool(value.isnan()) for value in masked_extremes(values, torch.tensor([True, True, False]), group=None))
    assert masked_extremes(values, torch.zeros(3, dtype=torch.bool), group=None) == (math.inf, -math.inf)
    with pytest.raises(ValueError, match="must be bool"):
        masked_extremes(values, torch.ones(1, dtype=torch.bool), group=None)
    assert masked_extremes(values[:0], torch.zeros(0, dtype=torch.bool), group=None) == (math.inf, -math.inf)


def test_a_nan_in_one_of_many_blocks_shows(monkeypatch):
    monkeypatch.setattr(masked, "CPU_BLOCK", 7)
    values, mask = torch.arange(40.0), torch.zeros(40, dtype=torch.bool)
    mask[15:18] = True
    assert masked_extremes(values, mask, group=None) == (15.0, 17.0)
    values[16] = math.nan
    assert all(bool(value.isnan()) for value in masked_extremes(values, mask, group=None))

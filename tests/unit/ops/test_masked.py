"""Sums and means over a mask: in float64, and independent of the order."""

import math

import pytest
import torch

from megacov.ops import masked, masked_mean, masked_sum


def _values(num_values: int, seed: int) -> torch.Tensor:
    """Float32 numbers of both signs with the magnitudes of log-probs, 1e-7 to 30."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = 10 ** (torch.rand(num_values, generator=generator) * 8.5 - 7)
    return magnitude * (torch.rand(num_values, generator=generator) - 0.7).sign()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equals_an_exact_sum(dtype):
    values = _values(5000, seed=0).to(dtype)
    mask = torch.rand(5000, generator=torch.Generator().manual_seed(1)) < 0.7
    exact = math.fsum(values[mask].double().tolist())
    total = masked_sum(values, mask, group=None)
    assert total.dtype == torch.float64
    assert total.item() == pytest.approx(exact, rel=1e-13)
    assert masked_mean(values, mask, group=None).item() == pytest.approx(exact / int(mask.sum()), rel=1e-13)


def test_neither_order_nor_blocks_of_the_values_change_a_bit(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    values = _values(20_000, seed=0)
    mask = torch.rand(20_000, generator=generator) < 0.9
    total, mean = masked_sum(values, mask, group=None), masked_mean(values, mask, group=None)
    plain_sums = set()
    for i in range(20):
        monkeypatch.setattr(masked, "CPU_BLOCK", 1000 + 50 * i)
        order = torch.randperm(20_000, generator=generator)
        plain_sums.add(values[order].double().sum().item())
        assert torch.equal(masked_sum(values[order], mask[order], group=None), total)
        assert torch.equal(masked_mean(values[order], mask[order], group=None), mean)
    assert len(plain_sums) > 1, "these values do not show the difference to a plain float64 sum"


def test_what_is_outside_the_mask_does_not_count():
    values = torch.tensor([[1.0, math.nan], [math.inf, 2.5]])
    mask = torch.tensor([[True, False], [False, True]])
    assert masked_sum(values, mask, group=None) == 3.5
    assert masked_mean(values, mask, group=None) == 1.75


def test_an_empty_mask_sums_to_zero_and_has_no_mean():
    values = torch.ones(3)
    mask = torch.zeros(3, dtype=torch.bool)
    assert masked_sum(values, mask, group=None) == 0
    assert masked_mean(values, mask, group=None).isnan()
    assert masked_sum(values[:0], mask[:0], group=None) == 0


def test_large_and_tiny_values_are_summed_as_well_as_in_plain_float64():
    large = torch.tensor([1e12, -3e11, 7.25], dtype=torch.float64)
    assert masked_sum(large, torch.ones(3, dtype=torch.bool), group=None).item() == pytest.approx(
        7e11 + 7.25, rel=1e-15
    )
    tiny = torch.full((1000,), 1e-9)
    assert masked_sum(tiny, torch.ones(1000, dtype=torch.bool), group=None).item() == pytest.approx(1e-6, rel=1e-5)


def test_no_gradient_passes_and_a_bad_mask_is_refused():
    values = torch.ones(3, requires_grad=True)
    assert not masked_mean(values, torch.ones(3, dtype=torch.bool), group=None).requires_grad
    for mask in (torch.ones(3), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="mask"):
            masked_sum(values, mask, group=None)

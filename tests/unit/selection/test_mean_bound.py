"""The smallest values within a mean, against a loop over sorted values in exact arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacov.selection import smallest_with_mean
from megacov.selection.mean_bound import within_mean

# Multiples of 2**-20, so that neither the reference nor the sums round.
VALUES = st.one_of(st.integers(0, 6), st.integers(0, 2**22)).map(lambda n: n / 2**20)
BOUNDS = st.integers(0, 2**22).map(lambda n: n / 2**20)


def expected_limit(values: list[float], bound: float) -> float:
    """The largest value that is kept, with all that are equal to it; -inf if none is."""
    limit = -float("inf")
    for value in sorted(set(values)):
        below = [Fraction(other) for other in values if other <= value]
        if sum(below) > Fraction(bound) * len(below):
            return limit
        limit = value
    return limit


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(VALUES, st.booleans()), max_size=30), BOUNDS)
def test_equals_a_loop_over_sorted_values(tokens, bound):
    values = torch.tensor([value for value, _ in tokens], dtype=torch.float32)
    mask = torch.tensor([kept for _, kept in tokens], dtype=torch.bool)
    found = smallest_with_mean(values, mask, bound=bound, group=None)
    limit = expected_limit([value for value, kept in tokens if kept], bound)
    assert torch.equal(found, mask & (values.double() <= limit))
    kept = [value for value, kept in tokens if kept]
    within = within_mean(values, mask, bound=bound, group=None)
    mean = float(sum(map(Fraction, kept)) / len(kept)) if kept else math.nan
    assert float(within.mean) == pytest.approx(mean, rel=1e-15, nan_ok=True)
    first_out = min((value for value in kept if value > limit), default=math.nan)
    assert float(within.limit) == pytest.approx(first_out, rel=0, nan_ok=True)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_squares_of_log_ratios(scale):
    """Ordinary values: the mean of what is kept is within the bound, and that with the next value is not."""
    generator = torch.Generator().manual_seed(0)
    values = (scale * torch.randn(5000, generator=generator)).square()
    mask = torch.rand(5000, generator=generator) < 0.8
    bound = 0.3 * float(values[mask].mean())
    kept = smallest_with_mean(values, mask, bound=bound, group=None)
    order = values[mask].double().sort().values
    number = int(kept.sum())
    assert 0 < number < len(order)
    assert float(order[:number].mean()) <= bound < float(order[: number + 1].mean())
    assert not (kept & ~mask).any()


def test_a_large_bound_keeps_all_and_a_small_one_nothing():
    values, mask = torch.tensor([0.5, 0.25, 3.0]), torch.tensor([True, True, False])
    assert smallest_with_mean(values, mask, bound=0.375, group=None).tolist() == [True, True, False]
    assert not smallest_with_mean(values, mask, bound=0.2, group=None).any()
    assert not smallest_with_mean(values, torch.zeros(3, dtype=torch.bool), bound=1.0, group=None).any()
    assert smallest_with_mean(values[:0], mask[:0], bound=1.0, group=None).shape == (0,)
    with pytest.raises(ValueError, match="float32"):
        smallest_with_mean(values.double(), mask, bound=1.0, group=None)

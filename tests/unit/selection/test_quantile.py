"""Exact quantiles, against numpy on float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacov.selection import global_quantile
from megacov.selection.sort_keys import sort_keys, values_of

FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.0]), st.floats(-(2.0**99), 2.0**99, width=32, allow_nan=False)
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(FLOATS, st.booleans()), min_size=1, max_size=40),
    st.one_of(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.floats(0, 1)),
)
def test_equals_numpy(tokens, quantile):
    values, mask = torch.tensor([value for value, _ in tokens]), torch.tensor([kept for _, kept in tokens])
    found = float(global_quantile(values, mask, quantile=quantile, group=None))
    if not mask.any():
        assert math.isnan(found)
        return
    expected = np.quantile(values[mask].double().numpy(), quantile)
    scale = float(values[mask].abs().max())
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12 * scale)


def test_the_ends_and_the_places_between_are_exact_values():
    values = torch.randn(101, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    everything = torch.ones(101, dtype=torch.bool)
    ordered = values.sort().values
    for place in (0, 1, 50, 99, 100):
        assert global_quantile(values, everything, quantile=place / 100, group=None) == pytest.approx(
            float(ordered[place]), rel=1e-13
        )


def test_infinities_are_values_and_nan_is_the_smallest():
    everything = torch.ones(3, dtype=torch.bool)
    values = torch.tensor([math.inf, -math.inf, 1.0])
    assert [float(global_quantile(values, everything, quantile=q, group=None)) for q in (0, 0.5, 1)] == [
        -math.inf,
        1.0,
        math.inf,
    ]
    values[2] = math.nan
    assert global_quantile(values, everything, quantile=0.0, group=None).isnan()
    assert global_quantile(values, everything, quantile=1.0, group=None) == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keys_can_be_turned_back_into_values(dtype):
    values = torch.tensor([-math.inf, -2.5, -1e-7, 0.0, 1e-7, 3.25, math.inf], dtype=dtype)
    assert torch.equal(values_of(sort_keys(values)[0], dtype), values.double())


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"quantile is 1\.5"):
        global_quantile(torch.ones(2), torch.ones(2, dtype=torch.bool), quantile=1.5, group=None)

"""Discounted sums over the rest of a response against a loop."""

from __future__ import annotations

import pytest
import torch

from megacov.ops import future_sums

LENGTHS = [5, 0, 3, 1, 8]


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("longest", [8, 9, 20])
def test_it_equals_a_loop(discount, longest):
    generator = torch.Generator().manual_seed(longest)
    samples = torch.repeat_interleave(torch.arange(5), torch.tensor(LENGTHS))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    values, mask = torch.rand(17, generator=generator), torch.rand(17, generator=generator) < 0.8
    order = torch.randperm(17, generator=generator)
    found = future_sums(
        torch.where(mask, values, float("nan"))[order],
        mask[order],
        (samples[order], positions[order]),
        shape=(5, longest),
        discount=discount,
        cp_group=None,
    )
    expected = [
        sum(
            discount ** int(positions[j] - positions[i]) * values[j].item()
            for j in range(17)
            if samples[j] == samples[i] and positions[j] > positions[i] and mask[j]
        )
        for i in order.tolist()
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_the_last_token_has_no_future(longest):
    nothing = torch.zeros(0, dtype=torch.int64)
    assert future_sums(
        torch.zeros(0), nothing.bool(), (nothing, nothing), shape=(2, longest), discount=0.9, cp_group=None
    ).shape == (0,)
    places = torch.zeros(longest, dtype=torch.int64), torch.arange(longest)
    everything = torch.ones(longest, dtype=torch.bool)
    found = future_sums(torch.ones(longest), everything, places, shape=(1, longest), discount=0.5, cp_group=None)
    assert found.tolist() == [0.75, 0.5, 0.0][-longest:]

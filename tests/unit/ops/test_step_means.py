"""Token mean and sequence mean, against sums over one sequence at a time."""

import math

import pytest
import torch

from megacov.ops import token_and_sequence_mean


def test_both_means_are_those_of_the_masked_tokens():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(0, 9, (500,), generator=generator)  # of 12: three have no token
    mask = (torch.rand(500, generator=generator) < 0.4) & (samples != 4)  # and one none that counts
    values = torch.where(mask, torch.randn(500, generator=generator), math.nan)
    by_sample = {s: values[mask & (samples == s)].double().tolist() for s in samples[mask].unique().tolist()}
    assert len({len(own) for own in by_sample.values()}) > 1
    everything = [value for own in by_sample.values() for value in own]
    found = token_and_sequence_mean(values, mask, samples, num_samples=12, group=None)
    assert float(found[0]) == pytest.approx(math.fsum(everything) / len(everything), rel=1e-13)
    means = [math.fsum(own) / len(own) for own in by_sample.values()]
    assert float(found[1]) == pytest.approx(math.fsum(means) / len(means), rel=1e-13)
    assert found[0] != found[1]


def test_no_token_has_no_mean():
    nothing = torch.zeros(3, dtype=torch.bool)
    found = token_and_sequence_mean(torch.ones(3), nothing, torch.arange(3), num_samples=3, group=None)
    assert all(bool(value.isnan()) for value in found)

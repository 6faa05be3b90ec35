"""Every prefix of a mixture follows the weights, and any position is found on its own."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacov.data.interleaving import Interleaving


def _largest_error(weights: list[float], length: int) -> Fraction:
    """Most prompts by which a source is off its exact share, over all prefixes; checks that none is skipped."""
    exact = [Fraction(str(weight)) for weight in weights]
    shares, counts, largest = [weight / sum(exact) for weight in exact], Counter(), Fraction(0)
    interleaving = Interleaving(weights)
    for position in range(length):
        source, before = interleaving.at(position)
        assert before == counts[source], "each source's prompts are numbered without a gap"
        counts[source] += 1
        largest = max(largest, *(abs(counts[i] - (position + 1) * share) for i, share in enumerate(shares)))
    return largest


@pytest.mark.parametrize(
    ("weights", "bound"),
    [
        ([1.0], 0),
        ([1.0, 1.0], 0.5),
        ([0.7, 0.3], 0.5),
        ([0.999, 0.001], 0.5),
        ([1.0, 1.0, 1.0], 1),
        ([5.0, 2.0, 2.0], 1),
        ([0.62, 0.37, 0.01], 1),
        ([4.0, 2.0, 1.0, 1.0], 1),
        ([8.0, 5.0, 3.0, 2.0, 1.0, 1.0], 2),
        ([0.01] * 10 + [0.9], 2),
    ],
)
def test_every_prefix_follows_the_weights(weights: list[float], bound: float) -> None:
    assert _largest_error(weights, 2_000) <= bound


@settings(deadline=None, derandomize=True, max_examples=60)
@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9))
def test_any_weights_are_followed(weights: list[float]) -> None:
    assert _largest_error(weights, 150) < (1 if len(weights) <= 3 else 2)


def test_a_far_position_is_as_exact_as_a_near_one() -> None:
    interleaving, weights, start = Interleaving([0.5, 0.3, 0.2]), (0.5, 0.3, 0.2), 10**15
    found = [interleaving.at(position) for position in range(start, start + 10)]
    assert sorted(source for source, _ in found) == [0] * 5 + [1] * 3 + [2] * 2
    assert all(abs(before - weights[source] * start) <= 5 for source, before in found)


def test_the_mixture_is_the_same_for_ever() -> None:
    """It is fixed here because a run resumed under a newer megacov must keep it."""
    interleaving = Interleaving([3.0, 1.0, 2.0])
    assert [interleaving.at(position)[0] for position in range(12)] == [2, 0, 1, 0, 2, 0, 2, 0, 1, 0, 2, 0]

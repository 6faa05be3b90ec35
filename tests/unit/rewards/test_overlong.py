"""The penalty for long responses is that of the paper."""

from __future__ import annotations

import pytest

from megacov.rewards.overlong import OverlongPenalty


def dapo(length: int, *, longest: int, cache: int) -> float:
    """Equation 13 of the paper, as it stands there."""
    if length <= longest - cache:
        return 0.0
    return ((longest - cache) - length) / cache if length <= longest else -1.0


@pytest.mark.parametrize("largest", [1.0, 0.5])
def test_it_is_the_equation_of_the_paper(largest: float) -> None:
    penalty = OverlongPenalty(max_response_length=20, buffer=8, largest=largest)
    for length in range(22):
        assert -penalty.of(length) == largest * dapo(length, longest=20, cache=8)
    assert [OverlongPenalty(20, 0, largest).of(length) for length in (0, 20)] == [0.0, 0.0]

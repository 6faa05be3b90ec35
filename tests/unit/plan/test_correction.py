"""The cost of a correction: by the formula of a pipeline, and the share of evenly spread tokens by drawing them."""

from __future__ import annotations

import random

import pytest

from megacov.plan.correction import MARGIN, correction_cost, evenly_spread_share


@pytest.mark.parametrize(("recompute", "forwards"), [("none", 3), ("selective", 4), ("full", 4)])
def test_without_a_pipeline_it_is_forward_and_backward_of_a_share(recompute: str, forwards: int) -> None:
    cost = correction_cost(recompute, pipeline=1, virtual=1)
    assert cost.over_a_pass(0.1, micro_batches=8) == pytest.approx(0.1 * forwards)
    limit = MARGIN / forwards
    assert cost.is_cheaper(limit - 1e-6, micro_batches=8) and not cost.is_cheaper(limit + 1e-6, micro_batches=8)


def test_a_pipeline_fills_and_drains_whatever_the_share() -> None:
    cost = correction_cost("none", pipeline=4, virtual=1)
    # A pass takes 8 + 3 turns; a correction of 1 micro-batch takes 1 + 3 forwards and twice that for backwards.
    assert cost.over_a_pass(1 / 8, micro_batches=8) == pytest.approx(3 * 4 / 11)
    assert not cost.is_cheaper(0.0, micro_batches=8)
    assert correction_cost("none", pipeline=4, virtual=2).is_cheaper(0.0, micro_batches=8)


@pytest.mark.parametrize(("ratio", "prompt", "response"), [(2e-3, 20, 300), (2e-2, 40, 100)])
def test_evenly_spread_tokens(ratio: float, prompt: int, response: int) -> None:
    draw, seen, sequences = random.Random(0), 0, 2000
    for _ in range(sequences):
        last = max((place for place in range(1, response + 1) if draw.random() < ratio), default=0)
        seen += prompt + last if last else 0
    expected = seen / sequences / (prompt + response)
    assert evenly_spread_share(ratio, prompt=prompt, response=response) == pytest.approx(expected, abs=0.02)

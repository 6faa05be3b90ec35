"""Threshold and margin of a selection."""

import math

import pytest
import torch

from megacov.selection import global_top_k, selection_margin

ALL = torch.ones(5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("scores", "k", "threshold", "margin"),
    [
        ([5.0, 1.0, 4.0, 2.0, 3.5], 2, 4.0, 0.5),
        ([5.0, 1.0, 4.0, 4.0, 3.5], 2, 4.0, 0.0),
        ([5.0, 1.0, math.nan, 2.0, 3.5], 4, 1.0, math.inf),
        ([5.0, 1.0, 4.0, 2.0, 3.5], 5, 1.0, math.inf),
        ([5.0, 1.0, 4.0, 2.0, 3.5], 0, math.inf, math.inf),
    ],
)
def test_lies_between_the_last_chosen_and_the_first_left_out(scores, k, threshold, margin):
    values = torch.tensor(scores)
    selected = global_top_k(values, ALL, torch.arange(5), k=k, group=None)
    assert tuple(map(float, selection_margin(values, selected, ALL, group=None))) == (threshold, margin)


def test_only_masked_tokens_count():
    scores = torch.tensor([5.0, 100.0, 4.0])
    kept_mask = torch.tensor([True, False, True])
    selected = torch.tensor([True, False, False])
    threshold, margin = selection_margin(scores, selected, kept_mask, group=None)
    assert (threshold.item(), margin.item()) == (5.0, 1.0)
    assert selection_margin(scores[:0], selected[:0], kept_mask[:0], group=None)[0] == math.inf

"""How far per-micro-batch statistics are off: 0 in one micro-batch, and measured by what the method does globally."""

from __future__ import annotations

import pytest
import torch

from benchmarks.method_scope import METHODS, effects, error
from benchmarks.selection_recall_data import Batch, chunks, gather, make_batch


@pytest.fixture(scope="module", autouse=True)
def batch() -> Batch:
    torch.set_num_threads(1)
    return make_batch(0, num_prompts=8, median_length=300)


@pytest.mark.parametrize("name", METHODS)
def test_only_the_scope_makes_the_error(batch: Batch, name: str) -> None:
    everything = range(len(batch.lengths))
    whole, parts = gather(batch, [everything]), gather(batch, chunks(everything, 4))
    wanted = effects(batch, whole, METHODS[name])
    assert wanted.sum() > 0
    # The order of the samples is the layout's, and no matter.
    shuffled = gather(batch, [torch.randperm(len(everything), generator=torch.Generator().manual_seed(0)).tolist()])
    assert error(effects(batch, shuffled, METHODS[name]), wanted) == 0
    assert error(effects(batch, parts, METHODS[name]), wanted) > 0.05


def test_an_error_counts_what_is_missing_and_what_is_too_much() -> None:
    wanted = torch.tensor([1.0, 1.0, 0.0, 0.5])
    assert error(wanted, wanted) == 0
    assert error(torch.zeros(4), wanted) == 1
    assert error(torch.tensor([1.0, 1.0, 1.0, 0.0]), wanted) == pytest.approx(1.5 / 2.5)

"""The check of the network between ranks, with correct sums and with wrong ones."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megacov.errors import RankError
from megacov.trainer.all_reduce_check import bus_bandwidth
from tests.support.run_ranks import run_cases

pytestmark = pytest.mark.dist


def _check(is_right: bool) -> float | str:
    """Where sums must be wrong, rank 1 once adds a wrong value."""
    if not is_right and dist.get_rank() == 1:
        dist.all_reduce(torch.full((2**18,), 2.0).index_fill_(0, torch.tensor([77]), 3.0))
        return ""
    try:
        return bus_bandwidth(1, torch.device("cpu"))
    except RankError as error:
        return str(error)


def test_sums_are_looked_at_before_the_time_they_took() -> None:
    right, wrong = run_cases(_check, [(True,), (False,)], world_size=2)
    assert right[0] == right[1] and isinstance(right[0], float) and right[0] > 0.0
    assert wrong[0] == "rank 0: an all-reduce over 2 ranks gives wrong sums."

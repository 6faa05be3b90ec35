"""Collectives over real gloo ranks: results, untouched inputs, explicit groups."""

import math

import pytest
import torch
import torch.distributed as dist

from megacov.parallel import (
    ParallelGroups,
    all_gather,
    all_reduce_max,
    all_reduce_sum,
    any_rank,
    broadcast_bytes,
    broadcast_tensor,
    reduce_scatter_sum,
)
from tests.support.run_ranks import run_ranks

pytestmark = pytest.mark.dist


def _reductions():
    group, rank = dist.group.WORLD, dist.get_rank()
    values = torch.tensor([rank, -rank], dtype=torch.int64)
    transposed = torch.arange(6.0).view(2, 3).t() + rank
    results = {
        "sum": all_reduce_sum(values, group=group),
        "max": all_reduce_max(values, group=group),
        "gather": all_gather(values, group=group),
        "gather_scalar": all_gather(torch.tensor(float(rank)), group=group),
        "gather_empty": all_gather(torch.empty(0, 4), group=group),
        "sum_strided": all_reduce_sum(transposed, group=group),
        "own_sum": reduce_scatter_sum(values, group=group),
        "own_sum_strided": reduce_scatter_sum(transposed.t(), group=group),
        "own_sum_bfloat16": reduce_scatter_sum(transposed.t().bfloat16(), group=group),
        "own_sum_empty": reduce_scatter_sum(torch.empty(2, 0, 4), group=group),
        "any": any_rank(rank == 1, group=group),
        "none": any_rank(False, group=group),
    }
    assert values.tolist() == [rank, -rank], "an input was written to"
    assert torch.equal(transposed, torch.arange(6.0).view(2, 3).t() + rank), "an input was written to"
    return results


def test_reductions_and_gathers():
    for rank, results in enumerate(run_ranks(_reductions, world_size=2)):
        assert results["sum"].tolist() == [1, -1]
        assert results["max"].tolist() == [1, 0]
        assert results["gather"].tolist() == [[0, 0], [1, -1]]
        assert results["gather_scalar"].tolist() == [0.0, 1.0]
        assert results["gather_empty"].shape == (2, 0, 4)
        assert torch.equal(results["sum_strided"], torch.arange(6.0).view(2, 3).t() * 2 + 1)
        assert results["own_sum"].tolist() == [1, -1][rank]
        for name in ("own_sum_strided", "own_sum_bfloat16"):
            assert results[name].tolist() == [[1, 3, 5], [7, 9, 11]][rank]
        assert results["own_sum_empty"].shape == (0, 4)
        assert results["any"] is True
        assert results["none"] is False


def _maxima_with_nan():
    """Three columns: NaN on rank 0, NaN on rank 1, and a minus infinity beside a number."""
    mine = [[math.nan, 2.0, -math.inf], [1.0, math.nan, -3.0]][dist.get_rank()]
    values = torch.tensor(mine)
    results = [all_reduce_max(values.to(dtype), group=dist.group.WORLD) for dtype in (torch.float32, torch.float64)]
    assert str(values.tolist()) == str(mine), "an input was written to"
    scalar = all_reduce_max(torch.tensor(mine[dist.get_rank()]), group=dist.group.WORLD)
    return [*(result.tolist() for result in results), scalar.item()]


def test_a_maximum_keeps_the_nan_of_every_rank():
    for *results, scalar in run_ranks(_maxima_with_nan, world_size=2):
        for nan_of_first, nan_of_second, largest in results:
            assert math.isnan(nan_of_first) and math.isnan(nan_of_second)
            assert largest == -3.0
        assert math.isnan(scalar)


_TENSORS = [
    torch.tensor([True, False]),
    torch.arange(6, dtype=torch.float64).view(2, 3),
    torch.tensor(1.5, dtype=torch.bfloat16),
    torch.empty(3, 0, dtype=torch.int64),
    torch.arange(6).view(2, 3).t(),
]


def _broadcasts():
    group, is_source = dist.group.WORLD, dist.get_rank() == 1
    payloads = [
        broadcast_bytes(payload if is_source else None, src_rank=1, group=group) for payload in (b"", b'{"a": 1}')
    ]
    return payloads, [broadcast_tensor(tensor if is_source else None, src_rank=1, group=group) for tensor in _TENSORS]


def test_broadcasts_need_no_shape_and_no_dtype_on_the_receivers():
    for payloads, tensors in run_ranks(_broadcasts, world_size=2):
        assert payloads == [b"", b'{"a": 1}']
        for received, sent in zip(tensors, _TENSORS, strict=True):
            assert received.dtype == sent.dtype
            assert torch.equal(received, sent)


def _subgroups():
    """TP 2 x PP 2: neighbours share a stage."""
    rank = dist.get_rank()
    tensor_groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    stage_groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    groups = ParallelGroups(world=dist.group.WORLD, tp=tensor_groups[rank // 2], pp=stage_groups[rank % 2])
    return (
        (groups.world_rank, groups.world_size, groups.tp_rank, groups.tp_size, groups.pp_rank, groups.pp_size),
        (groups.is_first_stage, groups.is_last_stage),
        all_reduce_sum(torch.tensor(rank), group=groups.tp).item(),
        broadcast_tensor(torch.tensor(rank), src_rank=1, group=groups.pp).item(),
        all_reduce_sum(torch.tensor(rank), group=groups.dp).item(),
    )


def test_ranks_count_within_their_group():
    assert run_ranks(_subgroups, world_size=4) == [
        ((0, 4, 0, 2, 0, 2), (True, False), 1, 2, 0),
        ((1, 4, 1, 2, 0, 2), (True, False), 1, 3, 1),
        ((2, 4, 0, 2, 1, 2), (False, True), 5, 2, 2),
        ((3, 4, 1, 2, 1, 2), (False, True), 5, 3, 3),
    ]


def _fail_on_rank_1():
    if dist.get_rank() == 1:
        raise ValueError("the cause")
    dist.barrier()


def test_the_first_failure_is_the_one_reported():
    with pytest.raises(AssertionError, match="rank 1 failed first, in case 0:(.|\n)*ValueError: the cause"):
        run_ranks(_fail_on_rank_1, world_size=2)

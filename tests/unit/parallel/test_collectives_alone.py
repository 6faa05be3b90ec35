"""Collectives on one rank are the identity and need no torch.distributed."""

import torch

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


def test_every_collective_is_the_identity_alone():
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    for result in (
        all_reduce_sum(values, group=None),
        all_reduce_max(values, group=None),
        broadcast_tensor(values, src_rank=0, group=None),
    ):
        assert torch.equal(result, values)
        assert not result.requires_grad
    assert torch.equal(all_gather(values, group=None), values.detach().unsqueeze(0))
    assert torch.equal(reduce_scatter_sum(values.unsqueeze(0), group=None), values.detach())
    assert any_rank(True, group=None)
    assert not any_rank(False, group=None)
    assert broadcast_bytes(b"{}", src_rank=0, group=None) == b"{}"


def test_a_single_rank_is_first_and_last_of_everything():
    groups = ParallelGroups()
    assert (groups.world_rank, groups.tp_rank, groups.pp_rank, groups.dp_rank) == (0, 0, 0, 0)
    assert (groups.world_size, groups.tp_size, groups.pp_size, groups.dp_size) == (1, 1, 1, 1)
    assert groups.is_first_stage
    assert groups.is_last_stage

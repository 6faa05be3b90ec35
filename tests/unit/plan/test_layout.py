"""Ranks and servers on nodes."""

from __future__ import annotations

import pytest

from megacov.errors import ConfigError
from megacov.plan import Cluster, Layout, ServerRequest, place

GIB = 2**30


def nodes(number: int | None) -> Cluster:
    return Cluster(number, 8, 80 * GIB, 4 * GIB, 1024 * GIB)


def test_servers_come_behind_the_trainer() -> None:
    found = place(Layout(8, True, 2, data=2), nodes(8), ServerRequest(tensor=2, number=None))
    assert found.stage_nodes == ((0, 1), (2, 3))
    assert (found.servers, found.server_nodes, found.idle_gpus) == (16, (4, 7), 0)
    assert found.remarks == ()


def test_what_neither_uses_is_idle() -> None:
    found = place(Layout(4), nodes(1), ServerRequest(tensor=1, number=3))
    assert (found.nodes, found.server_nodes, found.idle_gpus) == (1, (0, 0), 1)


def test_colocated_servers_share_the_trainers_gpus() -> None:
    found = place(Layout(8, data=2), nodes(None), ServerRequest(tensor=4, number=None, colocated=True))
    assert (found.nodes, found.servers, found.server_nodes, found.idle_gpus) == (2, 4, (0, 1), 0)


def test_nodes_are_counted_where_none_are_named() -> None:
    assert place(Layout(8, data=3), nodes(None), None).nodes == 3
    assert place(Layout(8, data=3), nodes(None), ServerRequest(tensor=8, number=2)).nodes == 5


def test_too_few_nodes_are_said_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"trainer takes 16 GPUs and the servers 2, and cluster.nodes 2 .* is 16"):
        place(Layout(8, data=2), nodes(2), ServerRequest(tensor=2, number=1))


@pytest.mark.parametrize(
    ("layout", "server", "remark"),
    [
        (Layout(16), 1, "parallel.tensor is 16 and a node has 8 GPUs"),
        (Layout(3, data=4), 1, "parallel.tensor is 3 and a node has 8 GPUs"),
        (Layout(8, context=2), 1, "parallel.tensor x parallel.context is 16"),
        (Layout(8), 16, "a server has 16 GPUs"),
    ],
)
def test_groups_that_cross_nodes_are_named(layout: Layout, server: int, remark: str) -> None:
    (found,) = place(layout, nodes(8), ServerRequest(tensor=server, number=1)).remarks
    assert found.startswith(remark)


def test_shares_of_the_optimizer() -> None:
    layout = Layout(tensor=2, sequence=True, pipeline=3, context=2, expert=4, data=5)
    assert (layout.world_size, layout.ranks_per_stage, layout.optimizer_shards) == (60, 20, 10)
    assert (layout.expert_optimizer_shards, layout.sequence_share) == (5, 2)

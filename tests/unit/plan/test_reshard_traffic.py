"""Sums over a plan equal those over its pieces."""

from __future__ import annotations

from collections import defaultdict
from math import prod

import pytest

from megacov.plan import Layout
from megacov.plan.reshard import plan_reshard
from megacov.plan.reshard_traffic import push_traffic
from megacov.plan.weight_parts import ServerLayout
from tests.support.weight_shards import model_shape, sizes_of


@pytest.mark.parametrize("bucket_bytes", [1000, 10**9])
@pytest.mark.parametrize(
    ("family", "layout", "servers"),
    [
        ("llama", Layout(tensor=2, pipeline=2, data=3), ServerLayout(2, 4)),
        ("qwen2", Layout(tensor=4, data=1), ServerLayout(3, 2)),
        ("qwen3_moe", Layout(tensor=2, data=4, expert=4), ServerLayout(2, 4, 2)),
    ],
)
def test_sums_are_those_of_the_pieces(family: str, layout: Layout, servers: ServerLayout, bucket_bytes: int) -> None:
    plan = plan_reshard(sizes_of(model_shape(family)), layout, servers, vocab_divisible_by=8)
    pairs: dict[tuple[int, tuple[int, int]], int] = defaultdict(int)
    for piece in plan.pieces():
        pairs[piece.sender, (piece.server, piece.receiver)] += 2 * prod(piece.source.shape)
    sent, received, peers = defaultdict(int), defaultdict(int), defaultdict(set)
    for (sender, receiver), num_bytes in pairs.items():
        sent[sender] += num_bytes
        received[receiver] += num_bytes
        peers[receiver].add(sender)
    found = push_traffic(plan, value_bytes=2, bucket_bytes=bucket_bytes)
    assert (found.sent, found.received) == (max(sent.values()), max(received.values()))
    assert (found.senders, found.peers) == (len(sent), max(map(len, peers.values())))
    assert found.messages == sum(-(-num_bytes // bucket_bytes) for num_bytes in pairs.values())
    assert found.sender_staging == min(2 * bucket_bytes, found.sent)
    assert found.receiver_staging == min(2 * bucket_bytes, found.received)


def test_a_rollout_rank_receives_its_part_of_the_model_alone() -> None:
    """Without tied or repeated tensors and without padding, four ranks receive a quarter each of what is split."""
    sizes = sizes_of(model_shape("llama", vocab=256))
    norms = (2 * sizes.num_layers + 1) * sizes.hidden_size
    found = [
        push_traffic(
            plan_reshard(sizes, Layout(), ServerLayout(1, ranks), vocab_divisible_by=8), value_bytes=1, bucket_bytes=8
        )
        for ranks in (1, 4)
    ]
    assert found[0].received - norms == 4 * (found[1].received - norms)

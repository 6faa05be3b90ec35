"""Whole shards in buckets: the trainer's ranks put together exactly what each rank of a server holds."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from megacov.plan import Layout
from megacov.plan.reshard import plan_reshard
from megacov.plan.weight_parts import ServerLayout
from megacov.weight_receiver.megacov_receiver import block_of
from megacov.weight_sync.shard_buckets import Bucket, Share, divide
from tests.support.weight_shards import hf_tensors, model_shape, server_shards, sizes_of, trainer_shards

torch.set_num_threads(1)
DIVISIBLE_BY = 8
Held = dict[int, dict[str, torch.Tensor]]


def buckets_of(family: str, trainer: Layout, servers: ServerLayout, max_bytes: int, **shape: int) -> list[Bucket]:
    sizes = sizes_of(model_shape(family, **shape))
    plan = plan_reshard(sizes, trainer, servers, vocab_divisible_by=DIVISIBLE_BY).of_one_replica()
    layouts = {
        receiver: {name: ("int32", each) for name, each in plan.target_shapes(receiver).items()}
        for receiver in range(servers.tensor)
    }
    return divide(plan, layouts, max_bytes=max_bytes)


def put_together(bucket: Bucket, held: Held) -> dict[tuple[int, str], torch.Tensor]:
    """As the ranks do it together; both ends of every message have the same list of parts."""
    shares = {rank: Share.from_json(json.loads(json.dumps(share.as_json()))) for rank, share in bucket.items()}
    made = {
        (each.receiver, each.name): torch.zeros(each.shape, dtype=getattr(torch, each.dtype))
        for share in shares.values()
        for each in share.makes
    }
    assert len(made) == sum(len(share.makes) for share in shares.values())
    for rank, share in shares.items():
        for peer, parts in share.gives:
            assert peer == rank or (rank, parts) in shares[peer].takes
            for receiver, part in parts:
                assert receiver in {each.receiver for each in shares[peer].makes}
                target = block_of(made[receiver, part.target], part.start, part.stop)
                assert not target.any(), "written twice"
                target.copy_(block_of(held[rank][part.source], part.source_start, part.source_stop))
    takes = sum(len(share.takes) for share in shares.values())
    assert takes == sum(peer != rank for rank, share in shares.items() for peer, _ in share.gives)
    return made


def assert_bounded(bucket: Bucket, max_bytes: int) -> None:
    made = [each for share in bucket.values() for each in share.makes]
    assert sum(each.num_bytes for each in made) <= max_bytes or len({each.name for each in made}) == 1
    assert len({each.receiver for each in made}) == len(
        {(each.receiver, rank) for rank in bucket for each in bucket[rank].makes}
    )


LAYOUTS: Sequence[tuple[str, Layout, ServerLayout]] = [
    ("qwen2", Layout(tensor=2), ServerLayout(1, 2)),
    ("llama", Layout(tensor=4, pipeline=2, data=2), ServerLayout(1, 2)),
    ("qwen3", Layout(tensor=1, pipeline=4), ServerLayout(1, 4)),
    ("qwen2", Layout(tensor=2, pipeline=2, virtual_pipeline=2, context=2), ServerLayout(1, 8)),
    ("qwen3_moe", Layout(tensor=2, data=2, expert=4), ServerLayout(1, 2)),
    ("qwen3_moe", Layout(tensor=2, pipeline=2, data=3, expert=2), ServerLayout(1, 4, 2)),
]


@pytest.mark.parametrize(("family", "trainer", "servers"), LAYOUTS)
@pytest.mark.parametrize("vocab", [16, 199])
def test_every_rank_of_a_server_gets_exactly_its_shard(
    family: str, trainer: Layout, servers: ServerLayout, vocab: int
) -> None:
    max_bytes = random.Random(f"{family} {trainer} {vocab}").choice([1, 20_000, 1 << 30])
    shape = model_shape(family, vocab=vocab)
    held = trainer_shards(hf_tensors(shape), shape, trainer, vocab_divisible_by=DIVISIBLE_BY)
    got: dict[tuple[int, str], torch.Tensor] = {}
    for bucket in buckets_of(family, trainer, servers, max_bytes, vocab=vocab):
        assert_bounded(bucket, max_bytes)
        made = put_together(bucket, held)
        assert not made.keys() & got.keys()
        got |= made
    for receiver in range(servers.tensor):
        expected = server_shards(hf_tensors(shape), shape, servers, receiver)
        own = {name: tensor for (rank, name), tensor in got.items() if rank == receiver}
        assert own.keys() == expected.keys()
        assert [name for name, tensor in expected.items() if not torch.equal(own[name], tensor)] == []


@pytest.mark.parametrize(
    ("trainer", "servers"),
    [
        (Layout(tensor=2, pipeline=2, data=2), ServerLayout(1, 2)),
        (Layout(tensor=4), ServerLayout(1, 4)),
        (Layout(pipeline=2), ServerLayout(1, 2)),
        (Layout(tensor=2), ServerLayout(1, 4)),
    ],
)
def test_where_a_rank_holds_what_is_needed_nothing_passes_between_ranks(trainer: Layout, servers: ServerLayout) -> None:
    peers: Counter[bool] = Counter()
    for bucket in buckets_of("qwen2", trainer, servers, 1 << 30):
        for rank, share in bucket.items():
            names = {name for _, parts in share.takes for _, part in parts for name in [part.target]}
            # Rows of a vocabulary that is padded otherwise begin on another rank.
            assert names <= {"model.embed_tokens.weight", "lm_head.weight"}
            peers.update(peer == rank for peer, _ in share.gives)
    assert peers[True] > 0


def test_only_the_other_half_passes_if_a_server_has_half_as_many_ranks() -> None:
    passed: Counter[bool] = Counter()
    for bucket in buckets_of("qwen2", Layout(tensor=4), ServerLayout(1, 2), 1 << 30):
        for rank, share in bucket.items():
            for peer, parts in share.gives:
                passed[peer == rank] += sum(part.num_bytes for _, part in parts)
    assert 0.4 < passed[False] / passed.total() < 0.5  # replicated norms are at hand

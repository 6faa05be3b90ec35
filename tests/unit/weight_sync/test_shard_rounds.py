"""Rounds of shards: every piece once, the same on both ends, and no rank holds more than its buffers."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from megacov.errors import WeightSyncError
from megacov.plan.layout import Layout
from megacov.plan.model_sizes import read_model_sizes
from megacov.plan.reshard import plan_reshard
from megacov.plan.weight_parts import ServerLayout
from megacov.weight_receiver.megacov_receiver import ALIGNMENT_BYTES, Part, read_rounds
from megacov.weight_sync.shard_rounds import check_layout, schedule
from tests.support.policies import TINY_POLICY

torch.set_num_threads(1)
SERVERS, TENSOR = 2, 2


@pytest.fixture(scope="module")
def plan():
    sizes = read_model_sizes(TINY_POLICY / "config.json")
    trainer = Layout(tensor=2, data=2)
    return plan_reshard(sizes, trainer, ServerLayout(SERVERS, TENSOR), vocab_divisible_by=128)


def layouts_of(plan, dtype: str):
    return {
        (server, receiver): {name: (dtype, shape) for name, shape in plan.target_shapes(receiver).items()}
        for server in range(SERVERS)
        for receiver in range(TENSOR)
    }


def group_rank(server: int, receiver: int) -> int:
    return 4 + server * TENSOR + receiver


@pytest.mark.parametrize(("dtype", "max_bytes"), [("float32", 30_000), ("bfloat16", 1 << 20), ("float32", 100)])
def test_every_element_goes_once_within_the_buffers(plan, dtype, max_bytes):
    pieces = list(plan.pieces())
    plans = schedule(pieces, layouts_of(plan, dtype), group_rank=group_rank, max_bytes=max_bytes)
    plans = {rank: read_rounds(json.loads(json.dumps(rounds))) for rank, rounds in plans.items()}
    assert sorted(plans) == list(range(8))
    received: Counter[tuple[int, str, int]] = Counter()
    for rank, rounds in plans.items():
        for number, messages in enumerate(rounds):
            parts = [part for _, parts in messages for part in parts]
            lengths = [sum(part.num_bytes for part in own) for _, own in messages]
            in_buffer = sum(length + -length % ALIGNMENT_BYTES for length in lengths)
            assert in_buffer <= max_bytes or len(parts) == 1
            for peer, own in messages:
                assert [each for each in plans[peer][number] if each[0] == rank] == [(rank, own)]
            if rank >= 4:
                for part in parts:
                    block = torch.zeros(part.shape, dtype=torch.int64)
                    block[tuple(map(slice, part.start, part.stop))] = torch.arange(1, block.numel() + 1).view(
                        block.shape
                    )[tuple(map(slice, part.start, part.stop))]
                    received[rank, part.target, 0] += int(block.sum())
                    received[rank, part.target, 1] += part.num_bytes
    for piece in pieces:
        rank, itemsize = group_rank(piece.server, piece.receiver), getattr(torch, dtype).itemsize
        block = torch.arange(1, 1 + torch.Size(plan.target_shapes(piece.receiver)[piece.target.name]).numel())
        block = block.view(plan.target_shapes(piece.receiver)[piece.target.name])
        block = block[tuple(map(slice, piece.target.start, piece.target.stop))]
        received[rank, piece.target.name, 0] -= int(block.sum())
        received[rank, piece.target.name, 1] -= block.numel() * itemsize
    assert set(received.values()) == {0}


def test_all_senders_work_in_the_first_rounds(plan):
    """A receiver must not get everything of the first stage before anything of the next."""
    plans = schedule(plan.pieces(), layouts_of(plan, "float32"), group_rank=group_rank, max_bytes=50_000)
    assert all(plans[rank][0] for rank in range(8))


def test_a_part_is_a_list_in_json():
    part = Part("a", (0,), (2,), "b", (1,), (3,), "float32", (4,))
    assert read_rounds(json.loads(json.dumps([[(1, [part])]]))) == [
        [(1, [Part("a", [0], [2], "b", [1], [3], "float32", [4])])]
    ]


def test_other_parameters_than_planned_are_refused(plan):
    layout = layouts_of(plan, "float32")[0, 1]
    check_layout(plan, 1, layout, server="http://a:1", transport="reshard", instead="broadcast")
    name = next(iter(layout))
    wrong = layout | {name: ("float32", (7, 7))}
    more, fewer = layout | {"extra.qweight": ("int8", (3,))}, {key: each for key, each in layout.items() if key != name}
    for each, words in ((wrong, r"has \(7, 7\) as"), (more, "has nothing for it"), (fewer, "has no such parameter as")):
        with pytest.raises(WeightSyncError, match=f"(?s)rank 1 of http://a:1 .*{words}.*transport=broadcast"):
            check_layout(plan, 1, each, server="http://a:1", transport="reshard", instead="broadcast")

"""The plan of a push: applied to real shards, every server's rank gets exactly its own, and all senders as much."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from math import prod
from pathlib import Path

import pytest
import torch

from megacov.plan import Layout, read_model_sizes
from megacov.plan.model_sizes import FAMILIES
from megacov.plan.pieces import Block, Piece
from megacov.plan.reshard import ReshardPlan, plan_reshard
from megacov.plan.weight_parts import ServerLayout
from tests.support.weight_shards import hf_tensors, model_shape, server_shards, sizes_of, trainer_shards

torch.set_num_threads(1)
CONFIGS = Path(__file__).parents[3] / "yaml_configs" / "models"


def view(tensors: dict[str, torch.Tensor], block: Block) -> torch.Tensor:
    return tensors[block.name][tuple(map(slice, block.start, block.stop))]


def random_layout(draw: random.Random, *, has_experts: bool, keys: int) -> Layout:
    tensor = draw.choice([each for each in (1, 2, 4, 8) if each <= keys])
    layout = Layout(
        tensor=tensor,
        pipeline=(pipeline := draw.choice([1, 2, 4])),
        virtual_pipeline=draw.choice([1, 2]) if pipeline == 2 else 1,
        context=draw.choice([1, 2]),
        data=draw.choice([1, 2, 3]),
    )
    fitting = [each for each in (1, 2, 4, 8) if layout.ranks_per_stage % each == 0]
    return Layout(**{**vars(layout), "expert": draw.choice(fitting)}) if has_experts else layout


def random_servers(draw: random.Random, *, has_experts: bool) -> ServerLayout:
    sizes = [(tensor, expert) for tensor in (1, 2, 4, 8) for expert in (1, 2, 4, 8) if tensor % expert == 0]
    tensor, expert = draw.choice(sizes if has_experts else [(each, 1) for each in (1, 2, 4, 8)])
    return ServerLayout(draw.choice([1, 2, 3]), tensor, expert)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(8))
def test_every_server_gets_exactly_its_shard(family: str, seed: int) -> None:
    draw = random.Random(f"{family} {seed}")
    has_experts, keys = family == "qwen3_moe", draw.choice([2, 4, 8])
    shape = model_shape(family, keys=keys, tied=draw.random() < 0.5, vocab=draw.choice([16, 128, 199, 300]))
    layout = random_layout(draw, has_experts=has_experts, keys=keys)
    servers, divisible_by = random_servers(draw, has_experts=has_experts), draw.choice([1, 8, 128])
    plan = plan_reshard(sizes_of(shape), layout, servers, vocab_divisible_by=divisible_by)
    hf = hf_tensors(shape)
    held = trainer_shards(hf, shape, layout, vocab_divisible_by=divisible_by)
    expected = [server_shards(hf, shape, servers, rank) for rank in range(servers.tensor)]
    for receiver, whole in enumerate(expected):
        assert plan.target_shapes(receiver) == {name: tuple(tensor.shape) for name, tensor in whole.items()}
    got = {
        (server, rank): {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
        for server in range(servers.number)
        for rank, whole in enumerate(expected)
    }
    for piece in plan.pieces():
        assert prod(piece.source.shape) == prod(piece.target.shape) > 0
        target = view(got[piece.server, piece.receiver], piece.target)
        assert not target.any(), "written twice"
        target.copy_(view(held[piece.sender], piece.source).view(target.shape))
    for (_, rank), tensors in got.items():
        for name, tensor in expected[rank].items():
            assert torch.equal(tensors[name], tensor), name
        # Only what the plan calls padding was left alone: all elements of the model are above 0.
        unwritten = {name: int((tensor == 0).sum()) for name, tensor in tensors.items() if bool((tensor == 0).any())}
        assert unwritten == {block.name: prod(block.shape) for block in plan.padding[rank]}


def load_of(pieces: Iterable[Piece]) -> Counter[int]:
    load: Counter[int] = Counter()
    for piece in pieces:
        load[piece.sender] += prod(piece.source.shape)
    return load


def check_views(plan: ReshardPlan) -> None:
    """What the ranks see by themselves is the whole plan, and both ends of a pair see the same order."""
    whole, sent, received = list(plan.pieces()), defaultdict(list), defaultdict(list)
    for rank in range(plan.trainer.world_size):
        for piece in plan.sent_by(rank):
            assert piece.sender == rank
            sent[piece.sender, piece.server, piece.receiver].append(piece)
    for server in range(plan.servers.number):
        for receiver in range(plan.servers.tensor):
            for piece in plan.received_by(server, receiver):
                assert (piece.server, piece.receiver) == (server, receiver)
                received[piece.sender, server, receiver].append(piece)
    assert sent == received
    assert Counter(whole) == Counter(piece for pieces in sent.values() for piece in pieces)


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe"])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_need_not_see_the_whole_plan(family: str, seed: int) -> None:
    draw = random.Random(seed)
    has_experts = family == "qwen3_moe"
    layout = random_layout(draw, has_experts=has_experts, keys=4)
    servers = random_servers(draw, has_experts=has_experts)
    check_views(plan_reshard(sizes_of(model_shape(family)), layout, servers, vocab_divisible_by=128))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("seed", range(5))
def test_replicas_send_the_same_but_for_a_row(family: str, seed: int) -> None:
    draw = random.Random(seed)
    has_experts = family == "qwen3_moe"
    layout = random_layout(draw, has_experts=has_experts, keys=4)
    servers, shape = random_servers(draw, has_experts=has_experts), model_shape(family)
    plan = plan_reshard(sizes_of(shape), layout, servers, vocab_divisible_by=8)
    widest_row = max(shape.hidden_size, shape.ffn_hidden_size)
    for is_expert, each in ((False, layout.tensor), (True, layout.expert)):
        load = load_of(piece for piece in plan.pieces() if ("experts" in piece.source.name) == is_expert)
        for place in {(rank // layout.ranks_per_stage, rank % each) for rank in load}:
            stage, holder = place
            in_stage = range(holder, layout.ranks_per_stage, each)
            of_replicas = [load[stage * layout.ranks_per_stage + rank] for rank in in_stage]
            assert max(of_replicas) - min(of_replicas) <= 2 * widest_row


@pytest.mark.parametrize("number", [1, 3, 32])
def test_32b_is_balanced_and_every_server_rank_gets_its_share_alone(number: int) -> None:
    sizes = read_model_sizes(CONFIGS / "qwen2.5-32b" / "config.json")
    layout, servers = Layout(tensor=8, pipeline=4, data=4), ServerLayout(number, 4)
    plan = plan_reshard(sizes, layout, servers, vocab_divisible_by=128)
    load: Counter[int] = Counter()
    received: Counter[tuple[int, int]] = Counter()
    for piece in plan.pieces():
        load[piece.sender] += prod(piece.source.shape)
        received[piece.server, piece.receiver] += prod(piece.target.shape)
    for place in {(rank // layout.ranks_per_stage, rank % 8) for rank in range(layout.world_size)}:
        of_replicas = [load[place[0] * layout.ranks_per_stage + place[1] + 8 * replica] for replica in range(4)]
        assert max(of_replicas) <= 1.01 * min(of_replicas)
    norms = (2 * 64 + 1) * 5120
    each = 2 * 152064 // 4 * 5120 + norms
    each += 64 * (
        5120 * (40 + 2 * 8) * 128 // 4 + (40 + 2 * 8) * 128 // 4 + 40 * 128 * 5120 // 4 + 3 * 5120 * 27648 // 4
    )
    assert set(received.values()) == {each}
    assert len(received) == servers.ranks


def test_neighbouring_rows_go_as_one_piece() -> None:
    """With as many ranks as key heads on both sides, a layer of Qwen2 has one piece for each parameter."""
    plan = plan_reshard(sizes_of(model_shape("qwen2")), Layout(tensor=4), ServerLayout(1, 4), vocab_divisible_by=64)
    of_layer = [piece for piece in plan.received_by(0, 2) if ".layers.1." in piece.target.name]
    assert len(of_layer) == len({piece.target.name for piece in of_layer}) == 7

"""The comparison of the push benchmark: a server must hold the bits of that very push, which it did not hold before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.weight_sync_sums import PushCheck, Sums, tensor_sum
from megacov.errors import WeightSyncError
from megacov.plan.weight_parts import ServerLayout
from tests.support.weight_shards import hf_tensors, model_shape, server_shards

torch.set_num_threads(1)
SHAPE, SERVERS = model_shape("qwen2", vocab=192), ServerLayout(2, 2)
CAPTURE = Path(__file__).parents[1] / "captures" / "sglang_0.5.23" / "weights_checker.json"
Held = dict[tuple[int, int], dict[str, Tensor]]


def weights_of(push: int) -> dict[str, Tensor]:
    return {name: each.float() + 1000 * push for name, each in hf_tensors(SHAPE).items()}


class Servers:
    """What two servers hold. `push` is whole; a test does something else afterwards, or instead."""

    def __init__(self) -> None:
        self.held: Held = {}
        self.push(0)

    def push(self, number: int) -> None:
        for server in range(SERVERS.number):
            for rank in range(SERVERS.tensor):
                shards = server_shards(weights_of(number), SHAPE, SERVERS, rank)
                self.held[server, rank] = {name: each.clone() for name, each in shards.items()}

    def sums(self) -> list[Sums]:
        return [
            [
                {name: tensor_sum(each) for name, each in self.held[server, rank].items()}
                for rank in range(SERVERS.tensor)
            ]
            for server in range(SERVERS.number)
        ]


def test_a_sum_is_that_of_a_real_server() -> None:
    """The captured server has norms of 64 ones, and biases of 128 zeros."""
    (rank,) = json.loads(CAPTURE.read_text())["response"]["ranks"]
    assert rank["checksums"]["model.norm.weight"] == tensor_sum(torch.ones(64))
    assert rank["checksums"]["model.layers.0.self_attn.qkv_proj.bias"] == tensor_sum(torch.zeros(128))


def test_every_push_of_new_weights_is_compared() -> None:
    servers = Servers()
    check = PushCheck(servers.sums, SHAPE)
    for number in (1, 2, 1):
        servers.push(number)
        check.check(weights_of(number), "broadcast")
    assert check.num_pushes == 3


def flip_a_bit(held: Held) -> None:
    held[1, 1]["lm_head.weight"].view(torch.int32)[5, 7] ^= 1


def exchange_ranks(held: Held) -> None:
    held[1, 0], held[1, 1] = held[1, 1], held[1, 0]


def forget_a_tensor(held: Held) -> None:
    del held[1, 0]["model.norm.weight"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (flip_a_bit, "1 faults, first: rank 1 holds other bits of lm_head.weight than were pushed"),
        (exchange_ranks, "rank 0 holds other bits of lm_head.weight"),
        (forget_a_tensor, "1 faults, first: rank 0 holds other bits of model.norm.weight"),
    ],
)
def test_what_did_not_arrive_is_named(wrong: Callable[[Held], None], words: str) -> None:
    servers = Servers()
    check = PushCheck(servers.sums, SHAPE)
    servers.push(1)
    wrong(servers.held)
    with pytest.raises(WeightSyncError, match=f"by reshard, server 1: .*{words}"):
        check.check(weights_of(1), "reshard")


def test_a_transport_that_moves_nothing_fails() -> None:
    servers = Servers()
    check = PushCheck(servers.sums, SHAPE)
    with pytest.raises(WeightSyncError, match="server 0: .*holds other bits"):
        check.check(weights_of(1), "nothing")
    # Neither does it pass where the servers had the weights before.
    servers.push(1)
    again = PushCheck(servers.sums, SHAPE)
    with pytest.raises(WeightSyncError, match="server 0: .*held these bits of .* before the push"):
        again.check(weights_of(1), "nothing")

"""Messages of tensors in different dtypes, one after another in a buffer, between real ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megacov.plan.pieces import Block, Piece
from megacov.weight_receiver.megacov_receiver import ALIGNMENT_BYTES, Channel, Part, block_of
from megacov.weight_sync.shard_rounds import schedule
from tests.support.run_ranks import run_cases

SHAPES = {"a": (3,), "b": (5, 7), "c": (1,), "d": (2, 3, 3), "e": (40, 3)}
# No dtype twice in a row where a message ends and the next one begins; few sizes are multiples of 8.
DTYPES = (
    {"a": "bfloat16", "b": "bfloat16", "c": "bfloat16", "d": "bfloat16", "e": "bfloat16"},
    {"a": "float32", "b": "bfloat16", "c": "float64", "d": "float32", "e": "float32"},
)
DTYPES_TURNED = (DTYPES[1] | {"a": "int8", "c": "int8"}, DTYPES[0] | {"e": "float64"})
TIMEOUT_S = 20.0


def source(name: str) -> Tensor:
    return torch.arange(prod(SHAPES[name]), dtype=torch.float64).view(SHAPES[name]) % 100 + 1


def pieces() -> Iterator[Piece]:
    for server in range(2):
        for name, shape in SHAPES.items():
            block = Block(name, (0,) * len(shape), shape)
            yield Piece(0, block, server, 0, block)


def exchange(dtypes: tuple[Mapping[str, str], ...], max_bytes: int) -> tuple[dict[str, Tensor], int, int]:
    """Rank 0 sends all; returns what a rank got, the bytes of its larger buffer, and the most messages of a round."""
    torch.set_num_threads(1)
    layouts = {(server, 0): {name: (own[name], SHAPES[name]) for name in SHAPES} for server, own in enumerate(dtypes)}
    rank, group = dist.get_rank(), dist.group.WORLD
    assert group is not None
    rounds = schedule(pieces(), layouts, group_rank=lambda server, _: 1 + server, max_bytes=max_bytes)[rank]
    channel = Channel(group, rounds, timeout_s=TIMEOUT_S)
    channel.open()
    got: dict[str, Tensor] = {}
    if rank == 0:
        for number in range(len(rounds)):
            for _, part, values in channel.parts(number):
                values.copy_(block_of(source(part.source), part.source_start, part.source_stop))
            channel.wait(channel.post(number, dist.isend))
    else:
        got = {name: torch.zeros(shape, dtype=getattr(torch, dtypes[rank - 1][name])) for name, shape in SHAPES.items()}

        def keep(part: Part, values: Tensor) -> None:
            block_of(got[part.target], part.start, part.stop).copy_(values)

        channel.take(keep)
    return got, max(buffer.numel() for buffer in channel._buffers), max(map(len, rounds))


@pytest.mark.dist
def test_messages_of_any_dtypes_follow_one_another() -> None:
    cases = [(dtypes, max_bytes) for dtypes in (DTYPES, DTYPES_TURNED) for max_bytes in (1 << 20, 500, 96, 30, 1)]
    for (dtypes, max_bytes), by_rank in zip(cases, run_cases(exchange, cases, world_size=3), strict=True):
        for own, (got, _, _) in zip(dtypes, by_rank[1:], strict=True):
            for name, dtype in own.items():
                assert torch.equal(got[name], source(name).to(getattr(torch, dtype))), (name, dtype, max_bytes)
        row = 3 * 3 * 4  # of "d" in float32, the largest, which may be larger than a buffer
        assert all(buffer <= max(max_bytes, row + -row % ALIGNMENT_BYTES) for _, buffer, _ in by_rank), max_bytes
        if max_bytes >= 500:
            assert by_rank[0][2] == 2, "no message follows another"

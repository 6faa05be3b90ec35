"""The bytes that a push from shard to shard reports are those that reach the ranks of servers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support import shard_stage
from tests.support.shard_peers import ServerRank

torch.set_num_threads(1)


class CountingRank(ServerRank):
    """Counts the bytes of the messages that it receives over its group."""

    num_bytes = 0

    def receive(self, fault: str, late_s: float) -> None:
        """As ServerRank's method."""
        original = dist.batch_isend_irecv

        def counted(operations: list[dist.P2POp]) -> list[dist.Work]:
            assert all(each.op is dist.irecv for each in operations)
            self.num_bytes += sum(each.tensor.nbytes for each in operations)
            return original(operations)

        dist.batch_isend_irecv = counted
        try:
            super().receive(fault, late_s)
        finally:
            dist.batch_isend_irecv = original

    def received(self) -> int:
        """Bytes so far."""
        return self.num_bytes


@pytest.mark.parametrize(("dtype", "bucket_bytes"), [("bfloat16", 150), ("float32", 1 << 20)])
def test_a_push_reports_the_bytes_that_a_server_received(
    monkeypatch: pytest.MonkeyPatch, dtype: str, bucket_bytes: int
) -> None:
    monkeypatch.setattr(shard_stage, "ServerRank", CountingRank)
    with shard_stage.stage(2, dtype=dtype, bucket_bytes=bucket_bytes) as here:
        reported: list[int] = []
        push = here.transport.push

        def counted(*args: Any) -> Any:
            times = push(*args)
            reported.append(times.num_bytes)
            return times

        monkeypatch.setattr(here.transport, "push", counted)
        assert here.push() == here.push(2) == ""
        held = sum(each.nbytes for each in shard_stage.expected(1, getattr(torch, dtype)).values())
        assert reported == [held, held]
        for server in here.servers:
            assert server.ranks[0].ask("received") == (sum(reported),)

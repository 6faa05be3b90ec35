"""The rounds that the benchmark of plans times are those of the whole plan."""

from __future__ import annotations

from collections import Counter

from benchmarks.reshard_plan import CASES, time_row


def test_rounds_hold_every_byte_of_the_plan_on_both_ends() -> None:
    case = CASES[1]
    plan, first = case.plan(), case.trainer.world_size
    planned: Counter[int] = Counter()
    for (sender, server, receiver), elements in plan.pair_sizes().items():
        for rank in (sender, first + server * case.servers.tensor + receiver):
            planned[rank] += 2 * elements  # bytes of bfloat16
    found = {
        rank: sum(part.num_bytes for messages in rounds for _, parts in messages for part in parts)
        for rank, rounds in case.rounds(plan).items()
    }
    assert found == planned
    assert len(time_row(case).split("|")) == 13

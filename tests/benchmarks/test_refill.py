"""The benchmark of refilling, small: all ways give the same groups."""

from __future__ import annotations

import asyncio
from functools import partial

from benchmarks.refill import Workload, at_once, by_rounds, measured


def test_all_ways_give_the_same_groups() -> None:
    workload = Workload(dropped=0.5, median_s=0.005)
    ways = [asyncio.run(measured(way, workload, num_groups=8, num_servers=2))[1:] for way in (by_rounds, at_once)]
    assert ways[0] == ways[1]
    kept, num_prompts = ways[1]
    assert kept == [index for index in range(num_prompts) if not workload.is_dropped(index)]
    assert len(kept) == 8 < num_prompts
    over_sampled = partial(at_once, over_sample=3.0)
    assert asyncio.run(measured(over_sampled, workload, num_groups=8, num_servers=2))[1] == kept

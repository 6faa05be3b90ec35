"""Prompts of each source get that source's number of completions, at its temperature."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from megacov.data.packing import build_rollout_batch, update_ranges
from megacov.rollout import CarriedGroup, GroupSettings
from megacov.rollout.sampling.carried import dump_carried, load_carried
from megacov.rollout.sampling.groups import SampledGroups
from megacov.types import Prompt
from tests.support.partial_rollouts import sampler_of
from tests.support.scripted_server import Call, Reply, completion

BY_SOURCE = (GroupSettings(2, 0.5), GroupSettings(5, 1.25))


def prompt(index: int) -> Prompt:
    return Prompt(index, f"prompt {index}", (index,), str(index), source=index % 2)


def _sample(num_groups: int, **settings: Any) -> tuple[SampledGroups, list[Call]]:
    calls: list[Call] = []

    async def script(call: Call) -> Reply:
        if call.path != "/generate":
            return Reply({})
        calls.append(call)
        index, n = call.body["input_ids"][0], call.body["sampling_params"]["n"]
        return Reply([completion([index, copy], text="x" * copy, version="0") for copy in range(n)])

    async def run() -> SampledGroups:
        async with sampler_of(script, by_source=BY_SOURCE, **settings) as sampler:
            source = map(prompt, range(20))
            return await sampler.sample_groups(source, num_groups, expected_version="0", trained_version=0)

    return asyncio.run(run()), calls


def test_each_source_has_its_own_number_and_temperature() -> None:
    sampled, calls = _sample(5)
    assert Counter(one.prompt.index for one in sampled.samples) == {0: 2, 1: 5, 2: 2, 3: 5, 4: 2}
    asked = {
        (call.body["input_ids"][0] % 2, call.body["sampling_params"]["n"], call.body["sampling_params"]["temperature"])
        for call in calls
    }
    assert asked == {(0, 2, 0.5), (1, 5, 1.25)}
    batch = build_rollout_batch(sampled.samples, max_response_length=5, temperatures=[0.5, 1.1])
    assert batch.temperatures is not None
    # Not rounded to float32, so that training reads responses at the very number that servers divide by.
    assert batch.temperatures.tolist() == [0.5] * 2 + [1.1] * 5 + [0.5] * 2 + [1.1] * 5 + [0.5] * 2
    # Groups of different sizes do not divide evenly: optimizer steps differ by one sequence.
    assert [len(part) for part in update_ranges(len(batch.rewards), num_updates=3)] == [5, 5, 6]


def test_a_carried_group_keeps_its_source_and_so_its_size() -> None:
    carried = load_carried(dump_carried([CarriedGroup(prompt(1), ())]))
    assert carried[0].prompt.source == 1

    async def script(call: Call) -> Reply:
        n = call.body["sampling_params"]["n"]
        return Reply([completion([1, copy], text="x" * copy, version="0") for copy in range(n)])

    async def run() -> SampledGroups:
        async with sampler_of(script, by_source=BY_SOURCE) as sampler:
            return await sampler.sample_groups(iter(()), 1, carried=carried, expected_version="0", trained_version=0)

    assert len(asyncio.run(run()).samples) == 5

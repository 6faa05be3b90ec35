"""Partial rollouts: every prompt is answered once, with tokens that are new enough, over any number of batches."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from megacov.errors import RolloutError
from megacov.rollout.sampling.carried import dump_carried, load_carried
from megacov.rollout.sampling.sampler import Sampler
from tests.support.judging import judged_by
from tests.support.partial_rollouts import BIG, LENGTH, MADE, N, Server, phase, prompt, sampler_of, trained
from tests.support.scripted_server import DROP, Call, Reply


def test_slow_completions_are_left_and_continued():
    async def run():
        server = Server(is_slow=lambda index, copy: index == 0 or (index == 2 and copy == 1))
        async with sampler_of(server, extra_prompts=2) as sampler:
            source = map(prompt, range(10))
            first = await phase(sampler, server, source)
            assert trained(first) == [1, 3]
            assert [group.prompt.index for group in first.carried] == [0, 2]
            reasons = [[each.finish_reason for each in group.completions] for group in first.carried]
            assert reasons == [["abort", "abort"], ["length", "abort"]]
            assert first.report.carried == 4 and first.report.aborted == 0
            server.is_slow = lambda index, copy: index > 3
            second = await phase(sampler, server, source, first.carried, version=1)
            return server, second

    server, second = asyncio.run(run())
    assert trained(second) == [0, 2]
    # Each piece has its own request with its tokens so far; finished completions are not requested again.
    continued = [call.body["input_ids"] for call in server.calls if len(call.body["input_ids"]) > 1]
    assert sorted(continued) == [[0, BIG, BIG + 1]] * 2 + [[2, BIG, BIG + 1]]
    assert second.report.continued_tokens == 3 * MADE
    assert [group.prompt.index for group in second.carried] == [4, 5]
    samples = sorted(second.samples, key=lambda one: one.prompt.index)
    spans = [[(span.version, span.start, span.end) for span in one.completion.version_spans] for one in samples]
    cut = [("0", 0, MADE), ("1", MADE, LENGTH)]
    assert spans == [cut, cut, [("0", 0, LENGTH)], cut]
    for one, of_one in zip(samples, spans, strict=True):
        versions = {place: int(version) for version, start, end in of_one for place in range(start, end)}
        expected = [-(BIG + place) - versions[place] / 10 for place in range(LENGTH)]
        assert list(one.completion.log_probs) == pytest.approx(expected)
    assert samples[0].completion.text == ",".join(str(BIG + place) for place in range(LENGTH))


def test_groups_that_end_beyond_the_wanted_number_are_carried_whole():
    async def run():
        server = Server()
        async with sampler_of(server, extra_prompts=6, max_concurrency=1) as sampler:
            source = map(prompt, range(20))
            first = await phase(sampler, server, source)
            num_asked = len(server.calls)
            second = await phase(sampler, server, source, first.carried, version=1)
            return first, second, num_asked

    first, second, num_asked = asyncio.run(run())
    assert trained(first) == [0, 1] and trained(second) == [2, 3]
    whole = sum(all(each.finish_reason == "length" for each in group.completions) for group in first.carried)
    # Requested groups are either used or carried whole; the others wait without a token.
    assert whole == num_asked - 2
    assert first.report.carried == N * whole
    assert [group.prompt.index for group in first.carried] == list(range(2, 8))


def test_carried_groups_are_spread_over_the_batch():
    async def run():
        server = Server(is_slow=lambda index, copy: index < 20)
        async with sampler_of(server, extra_prompts=20) as sampler:
            source = map(prompt, range(100))
            first = await phase(sampler, server, source, num_groups=20)
            server.is_slow = lambda index, copy: index >= 60
            return await phase(sampler, server, source, first.carried, version=1, num_groups=40)

    sampled = asyncio.run(run())
    is_carried = [one.prompt.index < 20 for one in sampled.samples[::N]]
    assert sum(is_carried) == 20
    # Hardly any order puts fewer or more of them into one half; this order is fixed.
    assert 4 <= sum(is_carried[:20]) <= 16


def test_tokens_that_would_be_too_old_are_sampled_again():
    async def run():
        server = Server(is_slow=lambda index, copy: index == 0)
        async with sampler_of(server, extra_prompts=1) as sampler:
            source, carried, reports = map(prompt, range(20)), (), []
            for version in range(4):
                if version == 3:
                    server.is_slow = lambda index, copy: index > 0
                sampled = await phase(sampler, server, source, carried, version=version, num_groups=1)
                carried = sampled.carried
                reports.append(sampled.report)
            return sampled, reports

    last, reports = asyncio.run(run())
    # Begun at 0 and continued at 1, to be trained at 2. Continued at 2 it would be trained at 3, so it begins again.
    assert [report.stale_dropped for report in reports] == [0, 0, N, 0]
    assert [report.continued_tokens for report in reports] == [0, N * MADE, 0, N * MADE]
    assert trained(last) == [0]
    oldest = {one.completion.version_spans[0].version for one in last.samples}
    assert oldest == {"2"}


@pytest.mark.parametrize(("fewest", "usable", "candidates"), [(1, 2, {0, 1, 2}), (4, 4, {0, 1, 2, 3})])
def test_after_a_time_fewer_groups_are_enough_if_they_can_be_trained_on(fewest: int, usable: int, candidates: set[int]):
    async def run():
        late = asyncio.Event()
        server = Server(is_slow=lambda index, copy: index > 3)

        async def script(call: Call) -> Reply:
            if call.path == "/generate" and call.body["input_ids"][0] == 3:
                await late.wait()
            return await server(call)

        async def arrive() -> None:
            await asyncio.sleep(0.5)
            late.set()

        settings = {"partial_after_s": 0.1, "group_multiple": 2, "fewest_groups": fewest}
        async with sampler_of(script, **settings) as sampler:
            arriving = asyncio.create_task(arrive())
            sampled = await phase(sampler, server, map(prompt, range(20)), num_groups=6)
            late.set()
            await arriving
            return sampled

    sampled = asyncio.run(run())
    assert len(trained(sampled)) == usable and set(trained(sampled)) <= candidates
    assert sorted(trained(sampled) + [group.prompt.index for group in sampled.carried]) == list(range(6))


def test_all_groups_come_where_there_is_time():
    async def run():
        server = Server()
        async with sampler_of(server, partial_after_s=20.0) as sampler:
            return await phase(sampler, server, map(prompt, range(20)), num_groups=6)

    sampled = asyncio.run(run())
    assert trained(sampled) == list(range(6)) and sampled.carried == ()


def test_groups_with_equal_rewards_are_replaced():
    async def run():
        server = Server(is_slow=lambda index, copy: index == 1)
        rewards = Counter[str]()

        def verify(_text: str, answer: str) -> float:
            rewards[answer] += 1
            return 0.0 if int(answer) in (0, 2) else float(rewards[answer] % 2)

        settings = {"extra_prompts": 1, "filter_groups": True, "verify": judged_by(verify)}
        async with sampler_of(server, **settings) as sampler:
            return await phase(sampler, server, map(prompt, range(20)))

    sampled = asyncio.run(run())
    assert trained(sampled) == [3, 4]
    assert [one.prompt.index for one in sampled.dropped[::N]] == [0, 2]
    assert [group.prompt.index for group in sampled.carried] == [1]
    report = sampled.report
    assert (report.dropped_groups, report.all_wrong_groups, report.refills) == (2, 2, 2)


def test_filtering_gives_up_with_a_sentence():
    async def run():
        server = Server()
        settings = {"extra_prompts": 1, "filter_groups": True, "max_filter_rounds": 2}
        async with sampler_of(server, **settings) as sampler:
            await phase(sampler, server, map(prompt, range(20)))

    with pytest.raises(
        RolloutError,
        match=r"Only 0 of 2 groups .* after 6 further prompts: all completions were right in 0 groups and wrong in 9;",
    ):
        asyncio.run(run())


def test_a_piece_goes_on_elsewhere_when_its_server_is_lost():
    async def run():
        dead = asyncio.Event()
        server = Server(is_slow=lambda index, copy: index == 0)

        async def script(call: Call) -> Reply:
            return DROP if dead.is_set() else await server(call)

        async with sampler_of(script, server, extra_prompts=1) as sampler:
            source = map(prompt, range(20))
            first = await phase(sampler, server, source, num_groups=1)
            dead.set()
            server.is_slow = lambda index, copy: index > 4
            (client,) = sampler.prompt_sampler.clients
            return await phase(sampler, server, source, first.carried, version=1, num_groups=4), client

    second, fleet = asyncio.run(run())
    assert 0 in trained(second)
    assert {0, 2, 3, 4} >= set(trained(second)) and len(trained(second)) == 4
    assert fleet.num_failovers > 0 and second.report.continued_tokens == N * MADE


def test_an_abort_that_nobody_asked_for_is_gone_on_with_at_once():
    async def run():
        server = Server()
        asked = Counter[int]()

        async def script(call: Call) -> Reply:
            index = call.body["input_ids"][0]
            asked[index] += 1
            if asked[index] == 1 and call.path == "/generate":
                return Reply([server._completion([BIG], "abort")] * N)
            return await server(call)

        async with sampler_of(script, extra_prompts=0, partial_after_s=20.0) as sampler:
            return await phase(sampler, server, map(prompt, range(2)))

    sampled = asyncio.run(run())
    assert trained(sampled) == [0, 1]
    assert sampled.report.aborted == 2 * N


async def _run_on(
    sampler: Sampler, server: Server, start: tuple[int, int, str], phases: int, slow: set[int]
) -> list[Any]:
    """Run batches from a state (version, position, carried as text); gives each batch and the next state."""
    version, position, text = start
    states = []
    for _ in range(phases):
        carried = load_carried(text)
        slow.clear()
        taken = 0

        def source(first: int = position) -> Any:
            nonlocal taken
            while True:
                taken += 1
                yield prompt(first + taken - 1)

        sampled = await phase(sampler, server, source(), carried, version=version, num_groups=3)
        lags = [version + 1 - int(span.version) for one in sampled.samples for span in one.completion.version_spans]
        assert max(lags) <= sampler.partial.max_staleness
        version, position, text = version + 1, position + taken, dump_carried(sampled.carried)
        states.append((trained(sampled), (version, position, text)))
    return states


def test_every_prompt_is_trained_on_once_also_across_a_resumption():
    async def run():
        # Some copies are slow for several batches, at different times, and never those of more than three prompts.
        server, slow = Server(), set[int]()

        def is_slow(index: int, copy: int) -> bool:
            if (index * 7 + copy * 3 + int(server.version)) % 5 >= 2 or len(slow | {index}) > 3:
                return False
            slow.add(index)
            return True

        server.is_slow = is_slow
        async with sampler_of(server, extra_prompts=3) as sampler:
            before = await _run_on(sampler, server, (0, 0, ""), 4, slow)
            # Three more batches are made and lost; then the run resumes from the state after four.
            await _run_on(sampler, server, before[-1][1], 3, slow)
            after = await _run_on(sampler, server, before[-1][1], 12, slow)
            return before + after

    states = asyncio.run(run())
    _, position, text = states[-1][1]
    answered = [index for batch, _ in states for index in batch]
    left = [group.prompt.index for group in load_carried(text)]
    assert len(answered) == len(states) * 3
    assert Counter(answered + left) == Counter(range(position))


def test_servers_that_get_no_more_requests_end_what_they_have_as_well():
    async def run():
        are_leaving = asyncio.Event()

        async def script(call: Call) -> Reply:
            if call.path == "/generate" and call.body["input_ids"][0] > 1:
                await are_leaving.wait()
            return await server(call)

        server = Server(is_slow=lambda index, copy: index < 2)
        async with sampler_of(script, script, extra_prompts=2) as sampler:
            (fleet,) = sampler.prompt_sampler.clients
            waiting = asyncio.create_task(phase(sampler, server, map(prompt, range(4)), num_groups=2))
            while server.waiting < 2:
                await asyncio.sleep(0.01)
            for member in fleet.membership.members:
                member.is_leaving = True
            are_leaving.set()
            return await asyncio.wait_for(waiting, 20.0)

    carried = asyncio.run(run()).carried
    assert [len(each.token_ids) for group in carried for each in group.completions] == [MADE] * 2 * N

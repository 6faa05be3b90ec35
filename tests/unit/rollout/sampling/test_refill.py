"""Refilling: at once when a group drops, and to the same batch whatever the order in which groups finish."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterable

import pytest

from megacov.errors import RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.sampling.groups import SampledGroups
from megacov.rollout.sampling.prompt_sampler import PromptSampler, Verifier
from megacov.rollout.sampling.sampler import Sampler
from megacov.types import Completion, Prompt, Verdict
from tests.support.judging import judged_by
from tests.support.partial_rollouts import Server, phase, prompt, sampler_of, trained
from tests.support.scripted_server import Call, Reply, Script, completion, scripted_clients

COPIES, WANTED = 2, 5
IS_RIGHT = judged_by(lambda text, _: float(text))


def answer(call: Call, dropped: Iterable[int]) -> Reply:
    """Tokens that depend on prompt and seed alone; all completions of dropped prompts are wrong."""
    index, asked = call.body["input_ids"][0], call.body["sampling_params"]
    digest = hashlib.blake2b(f"{index}/{asked.get('sampling_seed')}".encode(), digest_size=8).digest()
    rights = [0 if index in dropped else copy % 2 for copy in range(asked["n"])]
    return Reply([completion([index, *digest, copy], text=str(right)) for copy, right in enumerate(rights)])


def sample(
    *scripts: Script,
    verify: Verifier = IS_RIGHT,
    num_groups: int = WANTED,
    max_concurrency: int = 256,
    max_filter_rounds: int = 10,
) -> SampledGroups:
    """Sample filtered groups from prompts that are known by their only token."""

    async def run(clients: list[RolloutClient]) -> SampledGroups:
        prompt_sampler = PromptSampler(
            clients=clients,
            verify=verify,
            samples_per_prompt=COPIES,
            max_response_length=16,
            filter_groups=True,
            max_concurrency=max_concurrency,
            max_filter_rounds=max_filter_rounds,
        )
        source = map(prompt, range(1000))
        return await Sampler(prompt_sampler).sample_groups(source, num_groups, expected_version="v0", seed=3)

    with scripted_clients(*scripts, vocab_size=1000) as (clients, run_in_loop):
        return run_in_loop(run(clients))


def shortest_prefix(dropped: Iterable[int], num_groups: int) -> int:
    """Prompts in the shortest prefix of the data with so many groups that are not dropped."""
    return next(size for size in range(1000) if len(set(range(size)).difference(dropped)) == num_groups)


def test_a_batch_does_not_depend_on_the_order_in_which_groups_finish():
    for case in range(4):
        chance = random.Random(case)
        dropped = {index for index in range(100) if chance.random() < (0.3, 0.5, 0.7, 0.9)[case]}
        batches = []
        for order in range(4):
            times, asked = random.Random(100 * case + order), []

            async def slow(call: Call) -> Reply:
                asked.append(call.body["input_ids"][0])  # noqa: B023 - the batch ends in this iteration
                await asyncio.sleep(times.random() * 0.02)  # noqa: B023
                return answer(call, dropped)  # noqa: B023

            async def quick(call: Call) -> Reply:
                asked.append(call.body["input_ids"][0])  # noqa: B023
                return answer(call, dropped)  # noqa: B023

            scripts = [[slow], [quick], [slow, quick], [slow, slow, slow]][order]
            batches.append(sample(*scripts, max_concurrency=(256, 2)[order % 2]))
            # Nothing is sampled beyond the shortest prefix, and nothing twice.
            assert sorted(asked) == list(range(shortest_prefix(dropped, WANTED)))
        first = batches[0]
        kept = [index for index in range(shortest_prefix(dropped, WANTED)) if index not in dropped]
        assert [one.prompt.index for one in first.samples[::COPIES]] == kept
        for other in batches[1:]:
            assert (other.samples, other.dropped) == (first.samples, first.dropped)
            assert other.report == first.report


def test_a_dropped_group_is_replaced_before_others_finish():
    replaced = asyncio.Event()

    async def script(call: Call) -> Reply:
        index = call.body["input_ids"][0]
        if index == 4:
            replaced.set()
        if index == 0:
            await replaced.wait()  # the first prompt finishes only once the second replacement has begun
        return answer(call, {1, 3})

    assert [one.prompt.index for one in sample(script, num_groups=3).samples[::COPIES]] == [0, 2, 4]


@pytest.mark.parametrize("rounds", [1, 3])
def test_further_prompts_are_bounded_by_rounds_of_the_batch(rounds: int):
    asked = []

    async def script(call: Call) -> Reply:
        asked.append(call.body["input_ids"][0])
        return answer(call, set(range(1, 1000)))

    with pytest.raises(RolloutError, match=rf"Only 1 of 5 .* after {rounds * WANTED} further prompts: .* in 0 groups"):
        sample(script, max_filter_rounds=rounds)
    assert sorted(asked) == list(range(WANTED * (rounds + 1)))
    # One more prompt within the bound is enough.
    last = WANTED * (rounds + 1) - 1
    dropped = set(range(1000)) - {0, 1, 2, 3, last}
    sampled = sample(lambda call: _at_once(answer(call, dropped)), max_filter_rounds=rounds)
    assert sampled.samples[-1].prompt.index == last
    assert sampled.report.refill_rounds == rounds


async def _at_once(reply: Reply) -> Reply:
    return reply


def waiting_verifier(condition: Callable[[int], Awaitable[None]]) -> Verifier:
    """A verifier that first waits for a condition on the prompt."""

    async def verify(prompt: Prompt, completion: Completion) -> Verdict:
        await condition(prompt.index)
        return Verdict(float(completion.text))

    return verify


def test_a_group_that_waits_for_verdicts_leaves_its_place_to_the_next_prompt():
    last_asked, judging, most = asyncio.Event(), 0, 0

    async def script(call: Call) -> Reply:
        if call.body["input_ids"][0] == WANTED - 1:
            last_asked.set()
        return answer(call, ())

    async def until_last(_index: int) -> None:
        nonlocal judging, most
        judging += 1
        most = max(most, judging)
        await last_asked.wait()
        judging -= 1

    sampled = sample(script, verify=waiting_verifier(until_last), max_concurrency=1)
    assert len(sampled.samples) == WANTED * COPIES
    # All completions of a group are judged at once, and groups beside each other.
    assert most >= (WANTED - 1) * COPIES


def test_a_verdict_that_fails_ends_the_batch_and_cancels_the_others():
    cancelled = []

    async def until_cancelled(index: int) -> None:
        if index == 1:
            raise ZeroDivisionError
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(index)
            raise

    with pytest.raises(ZeroDivisionError):
        sample(lambda call: _at_once(answer(call, ())), verify=waiting_verifier(until_cancelled), max_concurrency=1)
    assert set(cancelled) <= {0, 2, 3, 4} and cancelled.count(0) == COPIES


def test_failures_of_the_verifier_stay_with_their_responses():
    async def verify(prompt: Prompt, completion: Completion) -> Verdict:
        return Verdict(0.0, "late") if prompt.index == 1 and completion.text == "0" else Verdict(float(completion.text))

    sampled = sample(lambda call: _at_once(answer(call, ())), verify=verify)
    assert [one.prompt.index for one in sampled.samples if one.failure == "late"] == [1]


def test_a_partial_batch_carries_groups_that_wait_for_verdicts_and_the_next_one_judges_them():
    verdicts: list[tuple[int, str]] = []

    async def run() -> tuple[SampledGroups, SampledGroups]:
        is_slow = asyncio.Event()

        async def verify(prompt: Prompt, completion: Completion) -> Verdict:
            try:
                if prompt.index == 0:
                    await is_slow.wait()
            except asyncio.CancelledError:
                verdicts.append((prompt.index, "cancelled"))
                raise
            verdicts.append((prompt.index, "given"))
            return Verdict(float(len(completion.text)))

        server = Server()
        async with sampler_of(server, extra_prompts=1, verify=verify, max_concurrency=1) as sampler:
            source = map(prompt, range(3))
            first = await phase(sampler, server, source)
            is_slow.set()
            return first, await phase(sampler, server, source, first.carried, version=1, num_groups=1)

    first, second = asyncio.run(run())
    assert trained(first) == [1, 2] and trained(second) == [0]
    assert [group.prompt.index for group in first.carried] == [0]
    assert all(each.finish_reason == "length" for each in first.carried[0].completions)
    assert [event for index, event in verdicts if index == 0] == ["cancelled"] * 2 + ["given"] * 2
    # Finished completions are judged by the next batch without another request.
    assert second.report.continued_tokens == 0 and second.report.truncated == 2

"""Groups of samples: complete, judged, from the right weights, and refilled until there are enough."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from megacov.errors import RewardError, RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.sampling.groups import SampledGroups
from megacov.rollout.sampling.prompt_sampler import PromptSampler
from megacov.rollout.sampling.sampler import Sampler
from megacov.types import Prompt
from tests.support.judging import judged_by
from tests.support.scripted_server import Call, Reply, Script, completion, scripted_server

N = 4
Answer = Callable[[int, int], list[dict[str, Any]]]


def prompts(number: int) -> Iterator[Prompt]:
    """Prompts whose only token is their index, so that the server knows them."""
    return (Prompt(index, f"prompt {index}", (index,), str(index)) for index in range(number))


@contextlib.asynccontextmanager
async def servers(script: Script, number: int) -> AsyncIterator[tuple[list[RolloutClient], list[list[Call]]]]:
    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(scripted_server(script)) for _ in range(number)]
        clients = [RolloutClient(address, vocab_size=1000, request_timeout_s=10.0) for address, _ in opened]
        for client in clients:
            await stack.enter_async_context(client)
        yield clients, [calls for _, calls in opened]


def sample(
    answer: Answer,
    *,
    num_prompts: int = 8,
    num_groups: int = 3,
    num_servers: int = 1,
    seed: int | None = None,
    delay_s: Callable[[int], float] = lambda _: 0.0,
    **settings: Any,
) -> tuple[SampledGroups, list[list[Call]]]:
    """Sample groups; `answer` gives the completions for a prompt's index and the n that was asked for."""

    async def script(call: Call) -> Reply:
        index = call.body["input_ids"][0]
        await asyncio.sleep(delay_s(index))
        return Reply(answer(index, call.body["sampling_params"]["n"]))

    async def run() -> tuple[SampledGroups, list[list[Call]]]:
        async with asyncio.timeout(30.0), servers(script, num_servers) as (clients, calls):
            options = {
                "verify": judged_by(lambda text, _: float(text or 0.0)),
                "samples_per_prompt": N,
                "max_response_length": 5,
            }
            sampler = Sampler(PromptSampler(clients=clients, **(options | settings)))
            return await sampler.sample_groups(
                prompts(num_prompts), num_groups, expected_version="v0", seed=seed
            ), calls

    return asyncio.run(run())


def mixed(index: int, n: int) -> list[dict[str, Any]]:
    """Half of the completions are right."""
    return [completion([index, copy], text=str(copy % 2)) for copy in range(n)]


def test_groups_are_complete_judged_and_in_the_order_of_the_prompts():
    sampled, (calls,) = sample(mixed, delay_s=lambda index: 0.1 - 0.04 * index)
    assert [(one.group, one.prompt.index) for one in sampled.samples] == [(g, g) for g in range(3) for _ in range(N)]
    assert [one.reward for one in sampled.samples] == [0.0, 1.0, 0.0, 1.0] * 3
    assert [one.completion.token_ids for one in sampled.samples[:N]] == [(0, copy) for copy in range(N)]
    assert len(calls) == 3
    assert sampled.dropped == []
    assert sampled.report.refill_rounds == 0


def test_the_verifier_gets_text_and_answer():
    seen = []
    sample(mixed, num_groups=1, verify=judged_by(lambda text, answer: seen.append((text, answer)) or 0.5))
    assert seen == [("0", "0"), ("1", "0"), ("0", "0"), ("1", "0")]


def by_index(right: set[int], wrong: set[int]) -> Answer:
    """All completions of some prompts are right, and of some wrong."""

    def answer(index: int, n: int) -> list[dict[str, Any]]:
        if index in right | wrong:
            return [completion([index], text="1" if index in right else "0")] * n
        return mixed(index, n)

    return answer


def test_groups_with_equal_rewards_are_dropped_and_refilled():
    sampled, (calls,) = sample(by_index({0, 3}, {2}), filter_groups=True)
    assert [one.prompt.index for one in sampled.samples[::N]] == [1, 4, 5]
    assert [one.group for one in sampled.samples[::N]] == [0, 1, 2]
    assert [(one.prompt.index, one.group) for one in sampled.dropped[::N]] == [(0, 3), (2, 4), (3, 5)]
    assert len(sampled.dropped) == 3 * N
    report = sampled.report
    assert (report.all_right_groups, report.all_wrong_groups, report.dropped_groups) == (2, 1, 3)
    assert (report.refills, report.refill_rounds) == (3, 1.0)
    # Never more prompts than are missing.
    assert len(calls) == 6


def test_without_filtering_equal_rewards_are_counted_and_kept():
    sampled, _ = sample(by_index({0}, {2}))
    assert [one.prompt.index for one in sampled.samples[::N]] == [0, 1, 2]
    assert (sampled.report.all_right_groups, sampled.report.all_wrong_groups) == (1, 1)
    assert sampled.report.dropped_groups == 0


@pytest.mark.parametrize(("num_prompts", "max_filter_rounds"), [(100, 2), (5, 100)])
def test_too_few_groups_are_an_error_that_says_what_to_change(num_prompts, max_filter_rounds):
    answer = by_index(set(range(100)) - {1}, set())
    settings = {"filter_groups": True, "num_prompts": num_prompts, "max_filter_rounds": max_filter_rounds}
    with pytest.raises(RolloutError, match=r"Only 1 of 3 groups .* set rollout.filter_groups to false"):
        sample(answer, **settings)


def test_too_few_prompts_are_an_error():
    with pytest.raises(RolloutError, match="Only 2 of 3 groups .* at least 3 prompts"):
        sample(mixed, num_prompts=2)


def test_an_iterator_of_prompts_continues_where_it_stopped():
    async def run():
        async def script(call: Call) -> Reply:
            return Reply(mixed(call.body["input_ids"][0], N))

        async with servers(script, 1) as (clients, _):
            sampler = Sampler(
                PromptSampler(
                    clients=clients, verify=judged_by(lambda *_: 0.0), samples_per_prompt=N, max_response_length=5
                )
            )
            source = prompts(8)
            return [await sampler.sample_groups(source, 3, expected_version="v0") for _ in range(2)]

    first, second = asyncio.run(run())
    assert [one.prompt.index for one in first.samples[::N]] == [0, 1, 2]
    assert [one.prompt.index for one in second.samples[::N]] == [3, 4, 5]


def first_time(trouble: Callable[[int], dict[str, Any]], *, number: int) -> Answer:
    """Some completions of the first request for each prompt are bad."""
    asked: Counter[int] = Counter()

    def answer(index: int, n: int) -> list[dict[str, Any]]:
        asked[index] += 1
        good = mixed(index, n)
        return good if asked[index] > 1 else [trouble(index)] * number + good[number:]

    return answer


def test_aborted_completions_are_sampled_again():
    answer = first_time(lambda index: completion([index], finish="abort"), number=3)
    sampled, (calls,) = sample(answer)
    assert Counter(one.group for one in sampled.samples) == {0: N, 1: N, 2: N}
    assert all(one.completion.finish_reason == "stop" for one in sampled.samples)
    assert sampled.report.aborted == 9
    assert Counter(call.body["sampling_params"]["n"] for call in calls) == {N: 3, 3: 3}


def mixed_versions(index: int) -> dict[str, Any]:
    spans = [{"version": "old", "start": 0, "end": 1}, {"version": "v0", "start": 1, "end": 2}]
    return completion([index, 9], weight_versions=spans)


@pytest.mark.parametrize("trouble", [mixed_versions, lambda index: completion([index], version="old")])
def test_completions_from_other_weights_are_sampled_again(trouble):
    sampled, _ = sample(first_time(trouble, number=2))
    assert Counter(one.group for one in sampled.samples) == {0: N, 1: N, 2: N}
    versions = {span.version for one in sampled.samples for span in one.completion.version_spans}
    assert versions == {"v0"}
    assert sampled.report.wrong_version == 6


@pytest.mark.parametrize("trouble", [mixed_versions, lambda index: completion([index], finish="abort")])
def test_a_server_that_never_gets_it_right_is_an_error(trouble):
    with pytest.raises(RolloutError, match=r"completions of prompt \d .* weight version v0, after 3 attempts"):
        sample(lambda index, n: [trouble(index)] * n, max_resamples=2)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_not_finite_names_the_prompt(reward):
    def verify(text: str, answer: str) -> float:
        return reward if answer == "2" else 0.0

    with pytest.raises(RewardError, match="of prompt 2"):
        sample(mixed, verify=judged_by(verify))


def test_empty_and_truncated_completions_are_counted():
    def answer(index: int, n: int) -> list[dict[str, Any]]:
        return [completion([]), completion([index], finish="length", text="1"), *mixed(index, n - 2)]

    sampled, _ = sample(answer)
    assert (sampled.report.empty, sampled.report.truncated) == (3, 3)
    assert sampled.samples[0].completion.token_ids == ()


def test_retries_are_counted_per_call():
    calls_seen = 0

    async def script(call: Call) -> Reply:
        nonlocal calls_seen
        calls_seen += 1
        return Reply(status=503) if calls_seen in (1, 2) else Reply(mixed(call.body["input_ids"][0], N))

    async def run():
        async with servers(script, 1) as (clients, _):
            sampler = Sampler(
                PromptSampler(
                    clients=clients, verify=judged_by(lambda *_: 0.0), samples_per_prompt=N, max_response_length=5
                )
            )
            return [(await sampler.sample_groups(prompts(3), 3, expected_version="v0")).report for _ in range(2)]

    assert [report.retries for report in asyncio.run(run())] == [2, 0]


def test_prompts_under_way_are_bounded_and_spread_over_servers():
    under_way: Counter[str] = Counter()
    most = 0

    async def script(call: Call) -> Reply:
        nonlocal most
        under_way[call.headers["host"]] += 1
        most = max(most, under_way.total())
        await asyncio.sleep(0.02)
        under_way[call.headers["host"]] -= 1
        return Reply(mixed(call.body["input_ids"][0], N))

    async def run():
        async with servers(script, 2) as (clients, calls):
            sampler = Sampler(
                PromptSampler(
                    clients=clients,
                    verify=judged_by(lambda *_: 0.0),
                    samples_per_prompt=N,
                    max_response_length=5,
                    max_concurrency=4,
                )
            )
            await sampler.sample_groups(prompts(20), 20, expected_version="v0")
            return [len(arrived) for arrived in calls]

    assert asyncio.run(run()) == [10, 10]
    assert most == 4


def test_a_seed_gives_every_request_its_own():
    def seeds(seed: int | None) -> list[int | None]:
        _, (calls,) = sample(first_time(mixed_versions, number=1), seed=seed)
        return [call.body["sampling_params"].get("sampling_seed") for call in sorted(calls, key=str)]

    assert seeds(None) == [None] * 6
    assert seeds(1) == seeds(1)
    assert len(set(seeds(1)) | set(seeds(2))) == 12
    assert all(0 <= seed < 2**63 for seed in seeds(1))


def test_progress_is_reported_group_by_group():
    async def run():
        async def script(call: Call) -> Reply:
            return Reply(mixed(call.body["input_ids"][0], N))

        done = []
        async with servers(script, 1) as (clients, _):
            sampler = Sampler(
                PromptSampler(
                    clients=clients, verify=judged_by(lambda *_: 0.0), samples_per_prompt=N, max_response_length=5
                )
            )
            await sampler.sample_groups(prompts(5), 5, expected_version="v0", on_group=lambda: done.append(1))
        return len(done)

    assert asyncio.run(run()) == 5

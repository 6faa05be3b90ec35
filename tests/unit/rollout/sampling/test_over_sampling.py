"""Over-sampling: more prompts at once, the same batch at any speed, and what the batch does not need is given up."""

from __future__ import annotations

import asyncio
import random
from dataclasses import asdict

import pytest

from megacov.errors import RewardError, RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.sampling.groups import SampledGroups
from megacov.rollout.sampling.prompt_sampler import PromptSampler, Verifier
from megacov.rollout.sampling.sampler import Sampler
from megacov.types import Completion, Prompt, Verdict
from tests.support.judging import judged_by
from tests.support.over_sampling import Server
from tests.support.partial_rollouts import prompt
from tests.support.scripted_server import scripted_clients

COPIES, WANTED = 2, 5
IS_RIGHT = judged_by(lambda text, _: float(text))
OF_TIME = ("aborted_groups", "unused_groups")  # counts that depend on speed


def sample(
    *servers: Server,
    over_sample: float = 1.0,
    verify: Verifier = IS_RIGHT,
    max_concurrency: int = 256,
    max_filter_rounds: int = 10,
    num_batches: int = 1,
    num_prompts: int = 1000,
) -> list[SampledGroups]:
    """Sample batches, each from where the one before ended in the data."""

    async def run(clients: list[RolloutClient]) -> list[SampledGroups]:
        prompt_sampler = PromptSampler(
            clients=clients,
            verify=verify,
            samples_per_prompt=COPIES,
            max_response_length=16,
            filter_groups=True,
            max_concurrency=max_concurrency,
            max_filter_rounds=max_filter_rounds,
        )
        sampler, position, batches = Sampler(prompt_sampler, over_sample=over_sample), 0, []
        for number in range(num_batches):
            source = map(prompt, range(position, num_prompts))
            batches.append(await sampler.sample_groups(source, WANTED, expected_version="v0", seed=number))
            position += batches[-1].num_prompts
        return batches

    with scripted_clients(*servers, vocab_size=10_000) as (clients, run_in_loop):
        return run_in_loop(run(clients))


def what_is_trained_on(batch: SampledGroups) -> tuple[object, ...]:
    """All of a batch that may not depend on speed."""
    report = {name: value for name, value in asdict(batch.report).items() if name not in OF_TIME}
    return batch.samples, batch.dropped, batch.num_prompts, report


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_batches_are_equal_at_any_speed_and_with_any_number_of_further_prompts(share: float):
    chance = random.Random(f"{share}")
    equal = {index: float(chance.randrange(2)) for index in range(1000) if chance.random() < share}
    alone = sample(Server(equal), num_batches=3)
    kept = [index for index in range(1000) if index not in equal]
    assert [one.prompt.index for batch in alone for one in batch.samples[::COPIES]] == kept[: 3 * WANTED]
    for factor, speeds in ((1.5, (0.02,)), (3.0, (0.0, 0.03)), (2.0, (0.01, 0.02, 0.03)), (4.0, (0.0,))):
        servers = [Server(equal, slowness_s=slowness_s) for slowness_s in speeds]
        batches = sample(*servers, over_sample=factor, num_batches=3, max_concurrency=(4, 256)[len(speeds) % 2])
        assert list(map(what_is_trained_on, batches)) == list(map(what_is_trained_on, alone))


def test_the_rest_is_aborted_once_the_first_groups_are_complete_and_comes_again():
    server = Server({1: 0.0, 3: 1.0}, held=range(7, 100))  # held up until the batch gives them up
    (batch,) = sample(server, over_sample=2.0)
    assert [one.prompt.index for one in batch.samples[::COPIES]] == [0, 2, 4, 5, 6]
    assert batch.num_prompts == 7
    report = batch.report
    assert (report.unused_groups, report.refills, report.aborted) == (0, 2, 0)
    assert 3 <= report.aborted_groups <= 5
    first, second = sample(Server({1: 0.0, 3: 1.0}, held=()), over_sample=2.0, num_batches=2)
    assert 3 <= first.report.aborted_groups + first.report.unused_groups <= 5
    assert [one.prompt.index for one in second.samples[::COPIES]] == [7, 8, 9, 10, 11]


def test_a_slow_group_among_the_first_is_waited_for():
    """Prompts that end before it do not take its place."""
    is_judged = [asyncio.Event() for _ in range(2 * WANTED)]

    async def verify(prompt: Prompt, completion: Completion) -> Verdict:
        if prompt.index == 2:
            await asyncio.gather(*(each.wait() for index, each in enumerate(is_judged) if index != 2))
        is_judged[prompt.index].set()
        return Verdict(float(completion.text))

    (batch,) = sample(Server(), over_sample=2.0, verify=verify)
    assert [one.prompt.index for one in batch.samples[::COPIES]] == [0, 1, 2, 3, 4]
    assert (batch.report.aborted_groups, batch.report.unused_groups) == (0, WANTED)


def test_no_prompt_starts_that_would_come_too_late():
    """Prompt 1 is dropped when so many others are kept that its replacement is not among the first of them.

    The batch still waits for prompt 0, so that a replacement would have the time to reach the server.
    """
    num_judged, are_enough = 0, asyncio.Event()

    async def verify(prompt: Prompt, completion: Completion) -> Verdict:
        nonlocal num_judged
        if prompt.index <= 1:
            await are_enough.wait()
            await asyncio.sleep(0.05 if prompt.index == 1 else 0.3)
        num_judged += prompt.index > 1
        if num_judged == 8 * COPIES:
            are_enough.set()
        return Verdict(float(completion.text))

    server = Server({1: 0.0})
    (batch,) = sample(server, over_sample=2.0, verify=verify)
    assert batch.num_prompts == 6 and sorted(server.asked) == list(range(10))


def test_what_the_batch_does_not_need_cannot_end_it():
    async def verify(prompt: Prompt, completion: Completion) -> Verdict:
        if prompt.index >= WANTED:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise RewardError("given up in the middle of a verdict") from None
        return Verdict(float(completion.text))

    (batch,) = sample(Server(), over_sample=2.0, verify=verify)
    assert batch.num_prompts == WANTED and batch.report.aborted_groups == WANTED


@pytest.mark.parametrize("factor", [1.0, 1.5, 3.0, 50.0])
def test_further_prompts_are_bounded_alike(factor: float):
    rounds = 2
    equal = {index: index % 2 / 2 for index in range(1, 1000)}  # prompt 0 alone has rewards that differ
    server = Server(equal)
    sentence = (
        r"Only 1 of 5 groups .* after 10 further prompts: .* right in 0 groups and wrong in 7, and of equal worth"
    )
    with pytest.raises(RolloutError, match=sentence + " in 7;"):
        sample(server, over_sample=factor, max_filter_rounds=rounds)
    assert sorted(server.asked) == list(range(WANTED * (rounds + 1)))


def test_a_batch_that_uses_up_the_last_prompt_is_complete():
    (batch,) = sample(Server({0: 1.0}), over_sample=3.0, num_prompts=WANTED + 1)
    assert batch.num_prompts == WANTED + 1 and batch.report.refills == 1


def test_a_factor_is_rounded_up_to_whole_prompts_but_not_by_rounding_errors():
    for factor, prompts in ((1.1, 6), (1.2, 6), (1.21, 7)):
        server = Server()
        (batch,) = sample(server, over_sample=factor)
        assert WANTED + batch.report.unused_groups + batch.report.aborted_groups == prompts

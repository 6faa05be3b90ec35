"""Sampling against a real HTTP server whose answers the test scripts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from megacov.config.suite import EvaluationSet
from megacov.errors import RolloutError
from megacov.evaluation.records import Answered
from megacov.evaluation.sample import Sampling, problem_digest, request_seed, sample_problems
from megacov.types import Completion, Prompt, Verdict
from tests.support.scripted_fleet import fleet_of, served
from tests.support.scripted_server import DROP, Call, Reply, completion

SETTINGS = EvaluationSet(name="set", path="x", verifier="sum_pairs", samples=2, temperature=0.6, extract="text")
SAMPLING = Sampling(settings=SETTINGS, seed=5, max_concurrency=2, expected_version="v1")
PROBLEMS = [Prompt(index=index, text=f"p{index}", token_ids=(1, index), answer=str(index)) for index in range(5)]


async def judge(prompt: Prompt, response: Completion) -> Verdict:
    return Verdict(float(response.text == prompt.answer))


async def right(call: Call) -> Reply:
    """Answers a problem with its number."""
    params = call.body["sampling_params"]
    return Reply([completion([3], text=str(call.body["input_ids"][1]), version="v1")] * params["n"])


def _sample(script, sampling=SAMPLING, problems=PROBLEMS, on_answered=None):
    async def run():
        async with fleet_of(served(script)) as (fleet, calls):
            answered = await asyncio.wait_for(
                sample_problems(fleet, judge, problems, sampling, on_answered=on_answered), 30.0
            )
            return answered, [call.body["sampling_params"] for call in calls[0] if call.path == "/generate"]

    return asyncio.run(run())


def test_all_responses_are_judged_in_the_order_of_the_problems():
    reported: list[Answered] = []

    async def slow_first(call: Call) -> Reply:
        await asyncio.sleep(0.2 if call.body["input_ids"][1] == 0 else 0.0)
        return await right(call)

    answered, params = _sample(slow_first, on_answered=reported.append)
    assert [each.index for each in answered] == [0, 1, 2, 3, 4]
    assert {each.index for each in reported} == {0, 1, 2, 3, 4}
    assert reported[0].index != 0
    assert all([response.reward for response in each.responses] == [1.0, 1.0] for each in answered)
    assert [response.answer for each in answered for response in each.responses] == list("0011223344")
    assert answered[3].digest == problem_digest(PROBLEMS[3])
    assert {(each["n"], each["temperature"], each["max_new_tokens"]) for each in params} == {(2, 0.6, 8192)}
    assert {each["sampling_seed"] for each in params} == {request_seed(5, "set", index) for index in range(5)}


def test_greedy_is_temperature_0_and_no_seed_is_sent_where_none_is_followed():
    greedy = EvaluationSet(name="set", path="x", verifier="sum_pairs", greedy=True)
    _, params = _sample(right, replace(SAMPLING, settings=greedy, seed=None, stop_token_ids=(7, 9)))
    assert all(each["stop_token_ids"] == [7, 9] for each in params)
    assert {(each["n"], each["temperature"]) for each in params} == {(1, 0.0)}
    assert not any("sampling_seed" in each for each in params)


def test_a_response_that_was_cut_is_wrong_and_not_judged():
    async def cut(call: Call) -> Reply:
        place = str(call.body["input_ids"][1])
        return Reply([completion([3], text=place, version="v1", finish="length")] * 2)

    answered, _ = _sample(cut)
    assert {(response.reward, response.answer) for each in answered for response in each.responses} == {(0.0, None)}


@pytest.mark.parametrize("bad", [{"finish": "abort"}, {"version": "v0"}])
def test_aborted_and_foreign_responses_are_sampled_again_with_another_seed(bad):
    seen: set[int] = set()

    async def first_is_bad(call: Call) -> Reply:
        place, n = call.body["input_ids"][1], call.body["sampling_params"]["n"]
        good = completion([3], text=str(place), version="v1")
        if place in seen:
            return Reply([good] * n)
        seen.add(place)
        return Reply([good, completion([3], **{"version": "v1"} | bad)])

    answered, params = _sample(first_is_bad)
    assert all(response.reward == 1.0 for each in answered for response in each.responses)
    assert sorted(each["n"] for each in params) == [1] * 5 + [2] * 5
    assert len({each["sampling_seed"] for each in params}) == 10


def test_a_server_that_aborts_everything_ends_with_a_sentence():
    async def aborted(call: Call) -> Reply:
        return Reply([completion([], finish="abort", version="v1")] * call.body["sampling_params"]["n"])

    with pytest.raises(RolloutError, match="responses to problem . of set were aborted .* after 4 attempts"):
        _sample(aborted)


def test_a_request_that_is_refused_names_the_set():
    async def refused(call: Call) -> Reply:
        return Reply({"error": {"message": "too many tokens"}}, status=400)

    with pytest.raises(
        RolloutError, match="the set set, with max_response_length 8192 and a problem of 2 tokens: .*too"
    ):
        _sample(refused)


def test_another_server_answers_where_one_dies():
    async def run():
        async with fleet_of(served(_dead), served(right)) as (fleet, _):
            return await asyncio.wait_for(sample_problems(fleet, judge, PROBLEMS, SAMPLING), 30.0), fleet.num_failovers

    async def _dead(call: Call) -> Reply:
        return DROP

    answered, num_failovers = asyncio.run(run())
    assert all(response.reward == 1.0 for each in answered for response in each.responses)
    assert num_failovers > 0


def test_seeds_differ_by_everything_that_they_depend_on():
    seeds = {request_seed(*each) for each in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a", 0, 1)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_different_problems_have_different_digests():
    problem = PROBLEMS[0]
    others = [replace(problem, answer="9"), replace(problem, token_ids=(1, 9))]
    assert len({problem_digest(each) for each in (problem, *others)}) == 3
    assert problem_digest(replace(problem, index=7)) == problem_digest(problem)
    rows = [{"tests": [1], "name": "a"}, {"tests": [2], "name": "a"}, {"name": "a", "tests": [1]}]
    first, other, same = (problem_digest(replace(problem, row=row)) for row in rows)
    assert first == same
    assert len({first, other, problem_digest(problem)}) == 3

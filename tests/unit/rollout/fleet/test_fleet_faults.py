"""A sampler on servers that fail in every way: each sample comes once and from the right weights, or an error does."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from megacov.errors import RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.fleet import fleet as fleet_module
from megacov.rollout.fleet import member
from megacov.rollout.fleet.fleet import Fleet
from megacov.rollout.sampling.groups import SampledGroups
from megacov.rollout.sampling.prompt_sampler import PromptSampler
from megacov.rollout.sampling.sampler import Sampler
from megacov.types import Prompt
from tests.support.judging import judged_by
from tests.support.scripted_fleet import VOCAB_SIZE, fleet_of
from tests.support.scripted_server import DROP, Call, Reply, completion, hang

VERSION = "7"
NUM_PROMPTS, NUM_SAMPLES = 24, 3
Completions = list[dict[str, Any]]
Fault = Callable[[Completions], Awaitable[Reply]]
_SERIALS = itertools.count(1000)


@dataclass(eq=False)
class Server:
    """Answers /generate with a token of the prompt and one that no other completion has, until it fails.

    fault: turns correct completions into a reply.
    fails_whole: whether all other calls fail too.
    first: requests answered correctly before that.
    version: version of its weights. `sampled_with`: versions at each request to sample.
    """

    fault: Fault | None = None
    fails_whole: bool = False
    first: int = 2
    version: str = VERSION
    sampled_with: list[str] = field(default_factory=list)

    async def __call__(self, call: Call) -> Reply:
        is_failing = self.fault is not None and len(self.sampled_with) >= self.first
        if call.path == "/generate":
            self.sampled_with.append(self.version)
            prompt, number = call.body["input_ids"][0], call.body["sampling_params"]["n"]
            right = [completion([prompt, next(_SERIALS)], version=self.version) for _ in range(number)]
            await asyncio.sleep(0.002)
            return await self.fault(right) if is_failing and self.fault else Reply(right)
        if is_failing and self.fails_whole and self.fault:
            return await self.fault([])
        if call.path == "/update_weights_from_disk":
            self.version = call.body["weight_version"]
            return Reply({"success": True})
        return Reply({"version": "0.5.23", "weight_version": self.version})


async def hangs(_right: Completions) -> Reply:
    return await hang(Call("", "", None, {}))


def answers(reply: Reply) -> Fault:
    async def fault(_right: Completions) -> Reply:
        return reply

    return fault


def spoils(change: Callable[[Completions], Any], **reply: Any) -> Fault:
    async def fault(right: Completions) -> Reply:
        return Reply(change(right), **reply)

    return fault


def with_meta(right: Completions, **meta: Any) -> Completions:
    return [one | {"meta_info": {**one["meta_info"], **meta}} for one in right]


def with_log_probs(right: Completions, value: Any) -> Completions:
    return [one for each in right for one in with_meta([each], output_token_logprobs=[[value, t, None] for t in
            each["output_ids"]])]  # fmt: skip


def of_version(right: Completions, version: str) -> Completions:
    spans = [{"version": version, "start": 0, "end": 2}]
    return with_meta(right, weight_version=version, weight_versions=spans)


# A fault, whether it affects all calls, and the error if all servers have it.
FAULTS: dict[str, tuple[Fault, bool, str]] = {
    "gone": (answers(DROP), True, "did not answer"),
    "hangs": (hangs, True, "did not answer|was not healthy"),
    "hangs in requests alone": (hangs, False, "it took too long"),
    "trickles": (spoils(lambda right: right, trickle_s=0.05), False, "it took too long"),
    "drops the connection": (answers(DROP), False, "did not answer"),
    "stops in the body": (answers(Reply(b"[{", promised_bytes=500)), False, "did not answer"),
    "no JSON": (answers(Reply(b"<html>")), False, "cannot be used"),
    "not what it is packed as": (
        answers(Reply(b"[]", headers=("content-encoding: gzip",))),
        False,
        "did not answer",
    ),
    "too busy": (answers(Reply({"error": "busy"}, status=429)), False, "status 429: busy"),
    "unavailable": (answers(Reply(status=503)), False, "status 503"),
    "broken inside": (answers(Reply(status=500)), False, "status 500"),
    "unknown path": (answers(Reply({"detail": "Not Found"}, status=404)), False, "status 404: Not Found"),
    "wrong key": (answers(Reply({"error": "Unauthorized"}, status=401)), False, "status 401: Unauthorized"),
    "no log-probs": (spoils(partial(with_meta, output_token_logprobs=[])), False, "log-probs"),
    "fewer log-probs": (spoils(partial(with_meta, output_token_logprobs=[[-1.0, 3, None]])), False, "log-probs"),
    "more log-probs": (spoils(partial(with_meta, output_token_logprobs=[[-1.0, 3, None]] * 3)), False, "log-probs"),
    "log-probs not finite": (spoils(partial(with_log_probs, value=float("nan"))), False, "finite"),
    "log-probs null": (spoils(partial(with_log_probs, value=None)), False, "valid number"),
    "fewer completions": (spoils(lambda right: right[1:]), False, "2 completions, but 3"),
    "more completions": (spoils(lambda right: [*right, right[0]]), False, "4 completions, but 3"),
    "weights of nobody": (spoils(partial(of_version, version="default")), False, "version default, which it was not"),
}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(member, "_FIRST_BACKOFF_S", 0.1)
    monkeypatch.setattr(fleet_module, "_MAX_ATTEMPTS", 4)


def make_client(address: str) -> RolloutClient:
    return RolloutClient(address, vocab_size=VOCAB_SIZE, max_retries=1, request_timeout_s=20.0)


def make_impatient_client(address: str) -> RolloutClient:
    return RolloutClient(address, vocab_size=VOCAB_SIZE, max_retries=1, request_timeout_s=2.0)


def patience(name: str) -> dict[str, Any]:
    """Deadlines of a fleet. Only servers that never answer or are always busy get short ones: these cores are slow."""
    if name in ("hangs", "hangs in requests alone", "trickles", "too busy", "unavailable"):
        return {"update": update, "make_client": make_impatient_client, "health_timeout_s": 1.0}
    return {"update": update, "make_client": make_client, "health_timeout_s": 10.0}


async def update(client: RolloutClient) -> None:
    await client.weights.load_from_disk("folder", weight_version=VERSION)


async def sample(fleet: Fleet, *, is_watched: bool = True) -> SampledGroups:
    fleet.membership.versions.add(VERSION)
    sampler = Sampler(
        PromptSampler(
            clients=[fleet],
            verify=judged_by(lambda *_: 1.0),
            samples_per_prompt=NUM_SAMPLES,
            max_response_length=4,
            max_concurrency=6,
        )
    )
    prompts = [Prompt(index, "", (index,), "") for index in range(NUM_PROMPTS)]
    sampling = sampler.sample_groups(prompts, NUM_PROMPTS, expected_version=VERSION)
    return await (fleet.membership.watched(sampling) if is_watched else sampling)


def assert_all_accounted_for(groups: SampledGroups) -> None:
    """Each prompt has its own samples, as many as requested, none twice, and all from the current weights."""
    expected = {(number, number): NUM_SAMPLES for number in range(NUM_PROMPTS)}
    assert Counter((sample.group, sample.completion.token_ids[0]) for sample in groups.samples) == expected
    assert len({sample.completion.token_ids[1] for sample in groups.samples}) == NUM_PROMPTS * NUM_SAMPLES
    assert {span.version for sample in groups.samples for span in sample.completion.version_spans} == {VERSION}
    assert all(sample.completion.log_probs == (-1.0, -1.0) for sample in groups.samples)


@pytest.mark.parametrize("name", FAULTS)
def test_one_server_fails_and_nothing_is_lost(name):
    fault, fails_whole, _ = FAULTS[name]

    async def run():
        servers = Server(fault, fails_whole), Server()
        async with fleet_of(*servers, **patience(name)) as (fleet, _):
            assert_all_accounted_for(await asyncio.wait_for(sample(fleet), 60.0))
            assert fleet.num_failovers > 0

    asyncio.run(run())


@pytest.mark.parametrize("name", FAULTS)
def test_all_servers_fail_and_the_error_says_why(name):
    fault, fails_whole, said = FAULTS[name]

    async def run():
        servers = Server(fault, fails_whole), Server(fault, fails_whole)
        async with fleet_of(*servers, **patience(name), start_timeout_s=1.0) as (fleet, _):
            with pytest.raises(RolloutError, match=said):
                await asyncio.wait_for(sample(fleet), 60.0)

    asyncio.run(run())


def test_all_servers_fail_for_a_while_and_nothing_is_lost():
    async def run():
        servers = Server(answers(DROP), True), Server(answers(DROP), True)
        async with fleet_of(
            *servers, update=update, make_client=make_client, start_timeout_s=20.0, health_timeout_s=10.0
        ) as (fleet, _):
            sampling = asyncio.create_task(sample(fleet))
            while fleet.membership.serving:
                await asyncio.sleep(0.01)
            for server in servers:
                server.fault = None
            assert_all_accounted_for(await asyncio.wait_for(sampling, 30.0))

    asyncio.run(run())


def test_a_restarted_server_gets_no_request_before_it_has_the_weights():
    async def run():
        empty = Server(answers(DROP), fails_whole=True)
        async with fleet_of(empty, Server(), update=update, make_client=make_client) as (fleet, _):
            assert_all_accounted_for(await sample(fleet))
            assert len(fleet.membership.serving) == 1
            empty.fault, empty.version = None, "default"

            async def until_back() -> None:
                while len(fleet.membership.serving) < 2:
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(fleet.membership.watched(until_back()), 30.0)
            before = len(empty.sampled_with)
            assert_all_accounted_for(await sample(fleet))
            assert len(empty.sampled_with) > before
            assert set(empty.sampled_with) == {VERSION}

    asyncio.run(run())


@pytest.mark.parametrize("is_watched", [True, False])
def test_a_server_restarted_by_somebody_else_is_detected(is_watched):
    """The watch finds it, or its first answer does, which is discarded."""

    async def run():
        emptied = Server(version="default")
        async with fleet_of(emptied, Server(), update=update, make_client=make_client) as (fleet, _):
            if is_watched:
                fleet.membership.versions.add(VERSION)
                await asyncio.wait_for(fleet.membership.watched(asyncio.sleep(1.0)), 30.0)
                assert emptied.version == VERSION
            groups = await asyncio.wait_for(sample(fleet, is_watched=is_watched), 30.0)
            assert_all_accounted_for(groups)
            assert groups.report.wrong_version == 0
            assert len(fleet.membership.serving) == (2 if is_watched else 1)
            # These requests were under way together, and none was answered yet.
            assert emptied.sampled_with.count("default") <= 6

    asyncio.run(run())

"""Partial rollouts from a scripted server, whose slow completions end only when they are aborted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from megacov.rollout.client.client import RolloutClient
from megacov.rollout.fleet.fleet import Fleet
from megacov.rollout.fleet.member import Member
from megacov.rollout.fleet.membership import Membership
from megacov.rollout.sampling.carried import CarriedGroup
from megacov.rollout.sampling.groups import SampledGroups
from megacov.rollout.sampling.partial import PartialRollouts
from megacov.rollout.sampling.prompt_sampler import PromptSampler
from megacov.rollout.sampling.sampler import Sampler
from megacov.types import Prompt
from tests.support.judging import judged_by
from tests.support.scripted_server import Call, Reply, completion, scripted_server

N, LENGTH, MADE = 2, 6, 2
UNCHECKED = 99  # a token that must not come back
BIG = 100  # above every prompt's index; a response is LENGTH tokens, each BIG + its place


@dataclass
class Server:
    """Answers with LENGTH tokens; slow prompts get MADE tokens, once all requests are aborted."""

    is_slow: Callable[[int, int], bool] = lambda index, copy: False
    version: str = "0"
    calls: list[Call] = field(default_factory=list)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0

    async def __call__(self, call: Call) -> Reply:
        if call.path == "/abort_request":
            assert call.body == {"abort_all": True}
            self.aborted.set()
            self.aborted = asyncio.Event()
            return Reply()
        self.calls.append(call)
        index, *kept = call.body["input_ids"]
        left = call.body["sampling_params"]["max_new_tokens"]
        assert left == LENGTH - len(kept)
        slow = [self.is_slow(index, copy) for copy in range(call.body["sampling_params"]["n"])]
        if any(slow):
            self.waiting += 1
            await self.aborted.wait()
        tokens = [BIG + len(kept) + place for place in range(left)]
        replies = [self._given_up(tokens) if is_slow else self._end(tokens) for is_slow in slow]
        return Reply(replies)

    def _given_up(self, tokens: list[int]) -> dict[str, Any]:
        # SGLang does not check whether the last token ends the completion.
        return self._completion([*tokens[:MADE], UNCHECKED], "abort")

    def _end(self, tokens: list[int]) -> dict[str, Any]:
        return self._completion(tokens, "length")

    def _completion(self, tokens: list[int], finish: str) -> dict[str, Any]:
        log_probs = [-token - float(self.version) / 10 for token in tokens]
        return completion(tokens, finish=finish, version=self.version, log_probs=log_probs)


def prompt(index: int) -> Prompt:
    return Prompt(index, f"prompt {index}", (index,), str(index))


@contextlib.asynccontextmanager
async def sampler_of(*scripts: Any, **settings: Any) -> AsyncIterator[Sampler]:
    def make_client(address: str) -> RolloutClient:
        return RolloutClient(address, vocab_size=1000, request_timeout_s=10.0, max_retries=1)

    async def nothing(_client: RolloutClient) -> None:
        return

    async with asyncio.timeout(30.0), contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(scripted_server(script)) for script in scripts]
        members = [Member(make_client(address)) for address, _ in opened]
        fleet = Fleet(Membership(members=members, make_client=make_client, bring_up_to_date=nothing))
        stack.push_async_callback(fleet.membership.aclose)
        options = {
            "verify": judged_by(lambda text, _: float(len(text))),
            "samples_per_prompt": N,
            "max_response_length": LENGTH,
            "decode": lambda ids: ",".join(map(str, ids)),
            "max_staleness": 2,
        } | settings
        of_prompts = {each.name for each in fields(PromptSampler)}
        prompt_sampler = PromptSampler(
            clients=[fleet], **{name: value for name, value in options.items() if name in of_prompts}
        )
        rest = {name: value for name, value in options.items() if name not in of_prompts}
        yield Sampler(prompt_sampler, PartialRollouts(**rest))


def trained(sampled: SampledGroups) -> list[int]:
    """Sorted indices of the prompts that are trained on."""
    for one in sampled.samples:
        assert one.completion.token_ids == tuple(BIG + place for place in range(LENGTH))
    assert [one.group for one in sampled.samples] == [i // N for i in range(len(sampled.samples))]
    return sorted(one.prompt.index for one in sampled.samples[::N])


async def phase(
    sampler: Sampler,
    server: Server,
    source: Any,
    carried: Sequence[CarriedGroup] = (),
    *,
    version: int = 0,
    num_groups: int = 2,
    ahead: int = 1,
) -> SampledGroups:
    server.version = str(version)
    return await sampler.sample_groups(
        source, num_groups, carried=carried, expected_version=str(version), trained_version=version + ahead
    )


def any_is_cut(groups: Sequence[CarriedGroup]) -> bool:
    """Whether a completion that is to be continued has tokens already."""
    pieces = (piece for group in groups for piece in group.completions if piece.finish_reason == "abort")
    return any(piece.token_ids for piece in pieces)

"""The time of a batch whose groups are filtered: refilled at once, against round by round.

    python -m benchmarks.refill [--groups 64] [--servers 4] [--dropped 0.5]

The servers are scripted HTTP servers in this process. They answer after a time that varies from prompt to prompt, like
the lengths of responses, and from server to server. Round by round means that a further round of prompts starts once
all groups of the round before have ended. Exits with 1 unless both ways give the same groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Annotated

import typer

from megacov.rollout import PromptSampler, RolloutClient, Sampler
from megacov.types import Completion, Prompt, Verdict
from tests.support.scripted_server import Call, Reply, Script, completion, scripted_server

SAMPLES_PER_PROMPT = 8
_VERSION = "v0"


@dataclass(frozen=True)
class Workload:
    """Prompts whose groups take their time, and of which a share is dropped.

    dropped: share of the prompts whose completions are all wrong.
    median_s, spread: of the log-normal time of a group.
    """

    dropped: float
    median_s: float = 0.4
    spread: float = 0.5

    def is_dropped(self, index: int) -> bool:
        """Whether all completions of a prompt are wrong."""
        return random.Random(f"dropped/{index}").random() < self.dropped

    def seconds(self, index: int, server: int) -> float:
        """Time that a server takes for a prompt's group; each server is 20 % slower than the one before. [s]"""
        return self.median_s * 1.2**server * random.Random(f"time/{index}").lognormvariate(0.0, self.spread)

    def server(self, number: int) -> Script:
        """A server that takes its time."""

        async def answer(call: Call) -> Reply:
            index, asked = call.body["input_ids"][0], call.body["sampling_params"]["n"]
            await asyncio.sleep(self.seconds(index, number))
            rights = [0 if self.is_dropped(index) else copy % 2 for copy in range(asked)]
            return Reply([completion([index], text=str(right)) for right in rights])

        return answer


async def _verify(_prompt: Prompt, completion: Completion) -> Verdict:
    return Verdict(float(completion.text))


async def at_once(clients: Sequence[RolloutClient], num_groups: int) -> list[int]:
    """Sample a batch with a further prompt as soon as a group is dropped; returns the prompts of the kept groups."""
    sampler = Sampler(_prompt_sampler(clients, filter_groups=True))
    sampled = await sampler.sample_groups(_prompts(), num_groups, expected_version=_VERSION)
    return [sample.prompt.index for sample in sampled.samples[::SAMPLES_PER_PROMPT]]


async def by_rounds(clients: Sequence[RolloutClient], num_groups: int) -> list[int]:
    """Sample a batch with a round of further prompts once a round has ended; returns the prompts of the kept groups."""
    sampler, source, kept = Sampler(_prompt_sampler(clients, filter_groups=False)), _prompts(), list[int]()
    while len(kept) < num_groups:
        sampled = await sampler.sample_groups(source, num_groups - len(kept), expected_version=_VERSION)
        for first in range(0, len(sampled.samples), SAMPLES_PER_PROMPT):
            group = sampled.samples[first : first + SAMPLES_PER_PROMPT]
            if len({sample.reward for sample in group}) > 1:
                kept.append(group[0].prompt.index)
    return kept


def _prompts() -> Iterator[Prompt]:
    return (Prompt(index, "", (index,), "") for index in count())


def _prompt_sampler(clients: Sequence[RolloutClient], *, filter_groups: bool) -> PromptSampler:
    return PromptSampler(
        clients=clients,
        verify=_verify,
        samples_per_prompt=SAMPLES_PER_PROMPT,
        max_response_length=16,
        filter_groups=filter_groups,
        max_filter_rounds=1000,
    )


async def measured(
    way: Callable[[Sequence[RolloutClient], int], Awaitable[list[int]]],
    workload: Workload,
    *,
    num_groups: int,
    num_servers: int,
) -> tuple[float, list[int], int]:
    """Time one batch.

    Args:
        way: `at_once` or `by_rounds`.
        workload: prompts and their times.
        num_groups: kept groups of the batch.
        num_servers: servers, each slower than the one before.

    Returns:
        Seconds, prompts of the kept groups, and the number of prompts that were sampled.
    """
    async with contextlib.AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(scripted_server(workload.server(each))) for each in range(num_servers)
        ]
        clients = [RolloutClient(address, vocab_size=1_000_000, request_timeout_s=600.0) for address, _ in opened]
        for client in clients:
            await stack.enter_async_context(client)
        started = time.monotonic()
        kept = await way(clients, num_groups)
        return time.monotonic() - started, kept, sum(len(calls) for _, calls in opened)


def main(
    groups: Annotated[int, typer.Option(min=1, help="Kept groups of the batch.")] = 64,
    servers: Annotated[int, typer.Option(min=1, help="Servers.")] = 4,
    dropped: Annotated[float, typer.Option(min=0.0, max=0.95, help="Share of groups that are dropped.")] = 0.5,
) -> None:
    """Time both ways, and print the result."""
    results = {}
    for way in (by_rounds, at_once):
        results[way] = asyncio.run(measured(way, Workload(dropped), num_groups=groups, num_servers=servers))
        seconds, _, num_prompts = results[way]
        print(f"{way.__name__}: {seconds:.2f} s for {groups} groups from {num_prompts} prompts")
    print(f"refilling at once is {results[by_rounds][0] / results[at_once][0]:.2f} times as fast")
    sys.exit(results[by_rounds][1:] != results[at_once][1:])


if __name__ == "__main__":
    typer.run(main)

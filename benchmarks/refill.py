"""The time of a batch whose groups are filtered: round by round, refilled at once, and over-sampled.

    python -m benchmarks.refill [--groups 64] [--servers 4] [--dropped 0.5] [--over-sample 2.0]

The servers are scripted HTTP servers in this process. They answer after a time that varies from prompt to prompt, like
the lengths of responses, and from server to server, but not with the number of requests under way: the time that
over-sampling saves is that of servers with room to spare. Round by round means that a further round of prompts starts
once all groups of the round before have ended. Exits with 1 unless all ways give the same groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
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

        aborted = asyncio.Event()

        async def answer(call: Call) -> Reply:
            if call.path == "/abort_request":
                aborted.set()
                return Reply()
            index, asked = call.body["input_ids"][0], call.body["sampling_params"]["n"]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(aborted.wait(), self.seconds(index, number))
                return Reply([completion([index], finish="abort")] * asked)
            rights = [0 if self.is_dropped(index) else copy % 2 for copy in range(asked)]
            return Reply([completion([index], text=str(right)) for right in rights])

        return answer


async def _verify(_prompt: Prompt, completion: Completion) -> Verdict:
    return Verdict(float(completion.text))


async def at_once(clients: Sequence[RolloutClient], num_groups: int, *, over_sample: float = 1.0) -> list[int]:
    """Sample a batch with a further prompt as soon as a group is dropped; returns the prompts of the kept groups."""
    sampler = Sampler(_prompt_sampler(clients, filter_groups=True), over_sample=over_sample)
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
        way: `by_rounds`, or `at_once` with some over-sampling.
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
        num_prompts = sum(call.path == "/generate" for _, calls in opened for call in calls)
        return time.monotonic() - started, kept, num_prompts


def main(
    groups: Annotated[int, typer.Option(min=1, help="Kept groups of the batch.")] = 64,
    servers: Annotated[int, typer.Option(min=1, help="Servers.")] = 4,
    dropped: Annotated[float, typer.Option(min=0.0, max=0.95, help="Share of groups that are dropped.")] = 0.5,
    over_sample: Annotated[float, typer.Option(min=1.0, help="Prompts at once, as a multiple of the groups.")] = 2.0,
) -> None:
    """Time all ways, and print the result."""
    ways = {
        "by rounds": by_rounds,
        "at once": at_once,
        f"over-sampled {over_sample:g} times": partial(at_once, over_sample=over_sample),
    }
    results = {}
    for name, way in ways.items():
        results[name] = asyncio.run(measured(way, Workload(dropped), num_groups=groups, num_servers=servers))
        seconds, _, num_prompts = results[name]
        faster = results["by rounds"][0] / seconds
        print(f"{name}: {seconds:.2f} s for {groups} groups from {num_prompts} prompts, {faster:.2f} times as fast")
    sys.exit(any(kept != results["by rounds"][1] for _, kept, _ in results.values()))


if __name__ == "__main__":
    typer.run(main)

"""A scripted server for over-sampling: what it answers depends on prompt and seed alone, and its speed on the test."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from tests.support.scripted_server import Call, Reply, completion


def mixed(_index: int, copy: int, _digest: bytes) -> float:
    """Reward of a completion where half of each group is right."""
    return float(copy % 2)


@dataclass
class Server:
    """Answers with tokens of prompt and seed alone, after a random time; `held` prompts answer only to an abort.

    equal: reward of all completions of a prompt, by prompt.
    reward: reward of a completion of any other prompt, by prompt, copy, and a digest of prompt and seed.
    slowness_s: longest time until an answer. [s]
    """

    equal: dict[int, float] = field(default_factory=dict)
    held: Collection[int] = ()
    slowness_s: float = 0.0
    reward: Callable[[int, int, bytes], float] = mixed
    asked: list[int] = field(default_factory=list)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, call: Call) -> Reply:
        if call.path == "/abort_request":
            self.aborted.set()
            return Reply()
        index, wanted = call.body["input_ids"][0], call.body["sampling_params"]
        self.asked.append(index)
        if index in self.held:
            await self.aborted.wait()
            return Reply([completion([index], finish="abort")] * wanted["n"])
        await asyncio.sleep(random.Random(index).random() * self.slowness_s)
        digest = hashlib.blake2b(f"{index}/{wanted.get('sampling_seed')}".encode(), digest_size=8).digest()
        rewards = [self.equal.get(index, self.reward(index, copy, digest)) for copy in range(wanted["n"])]
        return Reply([completion([index, *digest], text=str(reward)) for reward in rewards])

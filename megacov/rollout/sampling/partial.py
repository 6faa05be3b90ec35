"""Partial rollouts: a batch ends before its slowest completions do, and the next batch continues them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from megacov.errors import RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.fleet.fleet import Fleet
from megacov.rollout.sampling.carried import DecodeTokens

_ABORT_TIMEOUT_S = 10.0  # of one call


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialRollouts:
    """When a batch may end with completions unfinished, and how the next one continues them.

    decode: turns token ids into text without special tokens, as the servers do.
    max_staleness: weight versions by which a token may lag behind the weights trained on it.
    extra_prompts: prompts sampled at the same time beyond those wanted.
    partial_after_s: time after which a batch may end with fewer groups; None waits for all. [s]
    group_multiple: the number of groups trained on is a multiple of this.
    fewest_groups: smallest number of groups that can be trained on.
    """

    decode: DecodeTokens
    max_staleness: int
    extra_prompts: int = 0
    partial_after_s: float | None = None
    group_multiple: int = 1
    fewest_groups: int = 1

    @property
    def end_early(self) -> bool:
        """Whether batches may leave something for the next one."""
        return self.extra_prompts > 0 or self.partial_after_s is not None

    def usable(self, num_groups: int) -> int:
        """How many of so many finished groups can be trained on."""
        usable = num_groups - num_groups % self.group_multiple
        return usable if usable >= self.fewest_groups else 0


async def abort_everything(clients: Iterable[RolloutClient | Fleet]) -> None:
    """Have all busy servers end all their requests, and answer with the tokens that they have."""
    busy: list[RolloutClient] = []
    for client in clients:
        busy += client.membership.busy if isinstance(client, Fleet) else [client]
    await asyncio.gather(*map(_abort_all, busy))


async def _abort_all(client: RolloutClient) -> None:
    """Abort all requests of a server. Ids would not do: SGLang gives the copies of a request ids it does not report."""
    with contextlib.suppress(RolloutError, TimeoutError):
        async with asyncio.timeout(_ABORT_TIMEOUT_S):
            await client.abort_request(None)

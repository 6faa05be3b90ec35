"""What becomes of prompts on their way to samples: judged groups, and what is counted."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from megacov.rollout.sampling.carried import CarriedGroup
from megacov.types import Completion, Prompt, Sample


@dataclass(slots=True)
class SamplingReport:
    """What happened on the way to the groups. Counts of completions unless they say otherwise.

    `aborted` and `wrong_version` were sampled again; the others are among the kept or dropped samples.
    """

    retries: int = 0  # of HTTP calls
    refill_rounds: int = 0
    dropped_groups: int = 0
    all_right_groups: int = 0  # every reward equal, and above 0
    all_wrong_groups: int = 0  # every reward equal, and not above 0
    aborted: int = 0
    wrong_version: int = 0
    truncated: int = 0  # ended by the length limit
    empty: int = 0  # no token
    carried: int = 0  # finished or begun, for the next phase
    continued_tokens: int = 0  # of an earlier phase, in completions that were gone on with
    stale_dropped: int = 0  # begun under weights that are too old by now, and sampled anew


@dataclass(frozen=True, slots=True)
class SampledGroups:
    """Samples in the order of their groups, numbered from 0 in the order of the prompts.

    `dropped` are samples of groups that dynamic filtering left out; their groups are numbered on from there. `carried`
    is for the next phase of partial rollouts.
    """

    samples: list[Sample]
    dropped: list[Sample]
    report: SamplingReport
    carried: tuple[CarriedGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """The completions of a prompt with their rewards."""

    prompt: Prompt
    completions: list[Completion]
    rewards: list[float]

    @property
    def rewards_differ(self) -> bool:
        """Whether some advantage is not zero, so that the group teaches something."""
        return len(set(self.rewards)) > 1

    def samples(self, number: int) -> list[Sample]:
        """The samples of the group, under this number."""
        return [
            Sample(prompt=self.prompt, completion=completion, group=number, reward=reward)
            for completion, reward in zip(self.completions, self.rewards, strict=True)
        ]

    def count(self, report: SamplingReport) -> None:
        """Add what is to be counted of its completions."""
        report.truncated += sum(completion.finish_reason == "length" for completion in self.completions)
        report.empty += sum(not completion.token_ids for completion in self.completions)
        if self.rewards and not self.rewards_differ:
            report.all_right_groups += self.rewards[0] > 0
            report.all_wrong_groups += self.rewards[0] <= 0


@dataclass(frozen=True, slots=True)
class SamplingCall:
    """What one call of `sample_groups` is about."""

    report: SamplingReport
    expected_version: str
    seed: int | None
    on_group: Callable[[], None] | None
    slots: asyncio.Semaphore

    def seed_of(self, *place: int) -> int | None:
        """A seed of 63 bits for one request: the number of its prompt in this call, which attempt it is, and so on."""
        if self.seed is None:
            return None
        digest = hashlib.blake2b("/".join(map(str, (self.seed, *place))).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

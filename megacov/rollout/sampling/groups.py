"""From prompts to samples: judged groups, and what is counted on the way."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from megacov.rollout.sampling.carried import CarriedGroup
from megacov.types import Completion, Prompt, Sample, Verdict


@dataclass(slots=True)
class SamplingReport:
    """Counts of one batch, in completions unless a comment names another unit.

    `aborted` and `wrong_version` completions were sampled again; the others are among the kept or dropped samples.
    """

    retries: int = 0  # of HTTP calls
    refills: int = 0  # prompts beyond the groups wanted, of which each stands for a dropped group
    refill_rounds: float = 0.0  # refills, divided by the number of groups wanted
    dropped_groups: int = 0
    all_right_groups: int = 0  # every reward equal, and 1 or more
    all_wrong_groups: int = 0  # every reward equal, and 0 or less
    equal_groups: int = 0  # every reward equal, and between 0 and 1
    aborted_groups: int = 0  # over-sampled, and given up when the batch was complete
    unused_groups: int = 0  # over-sampled, and judged in vain
    aborted: int = 0
    wrong_version: int = 0
    truncated: int = 0  # ended by the length limit
    empty: int = 0  # without a token
    carried: int = 0  # finished or begun, left for the next batch
    continued_tokens: int = 0  # tokens from earlier batches in completions that were continued
    stale_dropped: int = 0  # begun under weights that are too old by now, and sampled again


@dataclass(frozen=True, slots=True)
class SampledGroups:
    """Samples in the order of their groups, numbered from 0 in the order of the prompts.

    dropped: samples of the groups that dynamic filtering left out, numbered after the kept groups.
    carried: groups left for the next batch of partial rollouts.
    num_prompts: prompts that the batch used up, counted from the source's first; it may have begun more.
    """

    samples: list[Sample]
    dropped: list[Sample]
    report: SamplingReport
    carried: tuple[CarriedGroup, ...] = ()
    num_prompts: int = 0


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """The completions of a prompt with their verdicts."""

    prompt: Prompt
    completions: list[Completion]
    verdicts: list[Verdict]

    @property
    def rewards(self) -> list[float]:
        """One reward for each completion."""
        return [verdict.reward for verdict in self.verdicts]

    @property
    def rewards_differ(self) -> bool:
        """Whether some advantage is not zero, so that the group has a gradient."""
        return len(set(self.rewards)) > 1

    def samples(self, number: int) -> list[Sample]:
        """The group's samples, with `number` as their group."""
        return [
            Sample(self.prompt, completion, group=number, reward=verdict.reward, failure=verdict.failure)
            for completion, verdict in zip(self.completions, self.verdicts, strict=True)
        ]

    def count(self, report: SamplingReport) -> None:
        """Add the group's completions to the report."""
        report.truncated += sum(completion.finish_reason == "length" for completion in self.completions)
        report.empty += sum(not completion.token_ids for completion in self.completions)
        if self.verdicts and not self.rewards_differ:
            reward = self.rewards[0]
            report.all_right_groups += reward >= 1
            report.all_wrong_groups += reward <= 0
            report.equal_groups += 0 < reward < 1


@dataclass(frozen=True, slots=True)
class SamplingCall:
    """One call of a sampler.

    expected_version: weight version that every new token must come from.
    seed: seed of the call; None sends no seeds.
    on_group: called after each group, for a progress bar.
    slots: limits the prompts that are generated at a time; a group that waits for its verdicts holds none.
    """

    report: SamplingReport
    expected_version: str
    seed: int | None
    on_group: Callable[[], None] | None
    slots: asyncio.Semaphore

    def show(self) -> None:
        """Count a judged group for the progress bar."""
        if self.on_group is not None:
            self.on_group()

    def seed_of(self, *place: int) -> int | None:
        """A 63-bit seed for one request, from its place: the number of its prompt in this call, its attempt, ..."""
        if self.seed is None:
            return None
        digest = hashlib.blake2b("/".join(map(str, (self.seed, *place))).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


def number_groups(
    kept: Sequence[JudgedGroup],
    dropped: Sequence[JudgedGroup],
    report: SamplingReport,
    carried: Iterable[CarriedGroup] = (),
    *,
    num_prompts: int,
) -> SampledGroups:
    """Number the groups, kept ones first.

    Args:
        kept: groups to train on.
        dropped: groups that dynamic filtering left out.
        report: counts of the call.
        carried: groups left for the next batch.
        num_prompts: prompts that the batch used up.

    Returns:
        The samples of all groups.
    """
    numbered = [group.samples(number) for number, group in enumerate([*kept, *dropped])]
    return SampledGroups(
        samples=[sample for samples in numbered[: len(kept)] for sample in samples],
        dropped=[sample for samples in numbered[len(kept) :] for sample in samples],
        report=report,
        carried=tuple(carried),
        num_prompts=num_prompts,
    )

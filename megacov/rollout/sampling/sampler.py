"""Batches of judged groups: n completions of each prompt, and a further prompt as soon as a group is dropped."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from megacov.rollout.sampling.batch import Batch, GrowingGroup
from megacov.rollout.sampling.carried import CarriedGroup
from megacov.rollout.sampling.groups import JudgedGroup, SampledGroups
from megacov.rollout.sampling.partial import PartialRollouts, abort_everything
from megacov.rollout.sampling.prompt_sampler import PromptSampler
from megacov.rollout.tasks import gather_all
from megacov.types import Prompt

_ABORT_AGAIN_S = 0.2
_END_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples batches of judged groups. Use it within the clients' event loop.

    Prompts start in the order of the data. When a group is dropped, the next prompt starts at once, so the groups kept
    and those under way always add up to the number that the batch started with.

    A whole batch is therefore the shortest prefix of the data that holds `num_groups` kept groups, whatever the order
    in which groups finish. It ends when nothing is under way, so all groups that started were judged, and `num_groups`
    of them were kept. The last prompt to start replaced a dropped group: at that time fewer than `num_groups` of the
    groups before it could still be kept, so no shorter prefix is enough. A request's seed depends on the place of its
    prompt in that prefix and not on time. No group is sampled in vain except those that filtering drops.

    Over-sampling starts more prompts than there are groups wanted, so that a dropped group near the end of the batch
    does not hold it up. The batch is the same prefix: it is complete once all groups up to the last one wanted are
    judged. All other work is then given up, and what it was for is sampled anew when its prompts come again.

    In partial rollouts a batch takes the groups that finish first, so it depends on time.

    A program without an event loop keeps an `asyncio.Runner` and calls `runner.run(sampler.sample_groups(...))`.

    prompt_sampler: how completions are sampled and judged.
    partial: how batches may leave completions unfinished; None for whole batches only.
    over_sample: prompts that a whole batch starts with, as a multiple of the groups wanted; 1 or more.
    """

    prompt_sampler: PromptSampler
    partial: PartialRollouts | None = None
    over_sample: float = 1.0

    async def sample_groups(
        self,
        prompts: Iterable[Prompt],
        num_groups: int,
        *,
        expected_version: str,
        trained_version: int | None = None,
        carried: Sequence[CarriedGroup] = (),
        seed: int | None = None,
        on_group: Callable[[], None] | None = None,
    ) -> SampledGroups:
        """Continue carried groups, begin further ones as needed, and stop once enough groups are kept.

        Args:
            prompts: source of prompts; only those that are started are taken, so without over-sampling an iterator can
                be used again.
            num_groups: groups wanted; after `partial_after_s` fewer are enough.
            expected_version: weight version that every new token must come from.
            trained_version: version of the weights that will be trained on the groups; for partial rollouts.
            carried: groups left by the previous batch of partial rollouts; they come first.
            seed: makes the samples repeatable on the embedded server; a new one for every call. None sends no seed.
            on_group: called after each judged group, for a progress bar.

        Returns:
            The kept groups: in the order of the data, or in partial rollouts shuffled, with those left for the next
            batch.

        Raises:
            RolloutError: a server failed, or too few groups are left.
            RewardError: a reward is not finite.
            DataError: a prompt has a token outside the vocabulary.
        """
        source, retries_before = iter(prompts), self.prompt_sampler.num_retries
        call = self.prompt_sampler.start_call(expected_version=expected_version, seed=seed, on_group=on_group)
        batch, num_first = Batch(call, num_carried=len(carried)), self._num_first(num_groups)
        if self.partial is not None and (carried or self.partial.end_early):
            assert trained_version is not None
            batch.partial, batch.oldest = self.partial, trained_version - self.partial.max_staleness
            num_first = num_groups + self.partial.extra_prompts
        assert batch.partial is not None or not carried
        try:
            for group in [*carried, *map(_fresh, islice(source, max(0, num_first - len(carried))))]:
                self._start(batch, group)
            # Over-sampled prompts are no bound for further ones: a batch ends in an error at any speed or at none.
            batch.num_first = batch.num_started if batch.partial else min(batch.num_started, num_groups)
            await self._fill(batch, source, num_groups)
            await self._end(batch)
        finally:
            for task in batch.tasks:
                task.cancel()
            await asyncio.gather(*batch.tasks, return_exceptions=True)
        call.report.retries = self.prompt_sampler.num_retries - retries_before
        return batch.result(num_groups)

    def _num_first(self, num_groups: int) -> int:
        """Prompts that a whole batch starts at once."""
        wanted = math.ceil(round(self.over_sample * num_groups, 6))
        return min(wanted, num_groups * (1 + self.prompt_sampler.max_filter_rounds))

    def _start(self, batch: Batch, carried: CarriedGroup) -> None:
        group = batch.add(carried, num_completions=self.prompt_sampler.settings_of(carried.prompt).num_samples)
        batch.start(group, self._complete(batch, group))

    async def _fill(self, batch: Batch, source: Iterator[Prompt], num_groups: int) -> None:
        """Wait until enough groups are kept. Groups that end after that stay under way, as if they had not ended."""
        most_prompts = batch.num_first * (1 + self.prompt_sampler.max_filter_rounds)
        after_s = None if batch.partial is None else batch.partial.partial_after_s
        late_at = None if after_s is None else time.monotonic() + after_s
        while len(batch.kept) < num_groups:
            left_s = None if late_at is None else late_at - time.monotonic()
            is_late = left_s is not None and left_s <= 0.0
            if is_late and batch.partial is not None and batch.partial.usable(len(batch.kept)) > 0:
                return
            if not batch.tasks:
                batch.count_refills(batch.num_started)
                num_kept = len(batch.kept)
                raise self.prompt_sampler.too_few_error(batch.call.report, num_kept=num_kept, num_groups=num_groups)
            ended = await batch.next_ended(timeout_s=None if is_late else left_s)
            if ended is None:
                continue
            batch.call.show()
            is_kept = self.prompt_sampler.keeps(ended[1])
            batch.settle(*ended, is_kept=is_kept, num_groups=num_groups)
            # Once enough groups are kept, none that starts now can be among the first of them.
            if not is_kept and batch.num_judged_kept < num_groups and batch.num_started < most_prompts:
                for group in map(_fresh, islice(source, 1)):
                    self._start(batch, group)

    async def _complete(self, batch: Batch, group: GrowingGroup) -> JudgedGroup | None:
        """Generate and judge a group; None if the batch is over before, with what there is in the group's pieces."""
        async with batch.call.slots:
            for attempt in range(self.prompt_sampler.max_resamples + 1):
                if batch.is_over or group.is_finished:
                    break
                await gather_all(self._extend(batch, group, copies, attempt) for copies in group.requests())
        if batch.is_over:
            return None
        num_missing = sum(piece.finish_reason == "abort" for piece in group.pieces)
        if num_missing:
            raise self.prompt_sampler.unusable_error(batch.call, group.prompt, num_missing=num_missing)
        return await self.prompt_sampler.judge(group.prompt, group.pieces)

    async def _extend(self, batch: Batch, group: GrowingGroup, copies: list[int], attempt: int) -> None:
        piece, place = group.pieces[copies[0]], (group.number, attempt)
        completions = await self.prompt_sampler.generate(
            group.prompt.token_ids + piece.token_ids,
            n=len(copies),
            max_new_tokens=self.prompt_sampler.max_response_length - len(piece.token_ids),
            seed=batch.call.seed_of(*place, *copies) if piece.token_ids else batch.call.seed_of(*place),
            prefix=group.prefix,
            temperature=self.prompt_sampler.settings_of(group.prompt).temperature,
        )
        for copy, completion in zip(copies, completions, strict=True):
            batch.extend(group, copy, completion, stop=self.prompt_sampler.stop)

    async def _end(self, batch: Batch) -> None:
        """Have the servers answer with what they have. Completions that are not answered keep their tokens so far.

        A whole batch needs none of it, so an error of what was over-sampled does not count.
        """
        batch.is_over = True
        deadline = time.monotonic() + _END_TIMEOUT_S
        judged = {task for task, group in batch.tasks.items() if group.is_finished}
        for task in judged:
            task.cancel()  # the next batch judges what it carries
        under_way = batch.tasks.keys() - judged
        while under_way and time.monotonic() < deadline:
            # Repeat: a request may have been on its way to a server, or have moved to another one.
            await abort_everything(self.prompt_sampler.clients)
            _, under_way = await asyncio.wait(under_way, timeout=_ABORT_AGAIN_S)
        for task in batch.tasks.keys() - judged - under_way if batch.partial is not None else ():
            task.result()


def _fresh(prompt: Prompt) -> CarriedGroup:
    return CarriedGroup(prompt, ())

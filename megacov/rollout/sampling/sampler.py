"""Groups of judged samples: n completions of each prompt, refilled until there are enough groups to learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from megacov.rollout.client.wire import Prefix
from megacov.rollout.sampling.groups import JudgedGroup, SampledGroups, SamplingCall, number_groups
from megacov.rollout.sampling.prompt_sampler import PromptSampler
from megacov.rollout.tasks import gather_all
from megacov.types import Completion, Prompt


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples batches in which every completion is finished. Use it within the clients' event loop.

    A program without an event loop keeps an `asyncio.Runner` and calls `runner.run(sampler.sample_groups(...))`.
    """

    prompt_sampler: PromptSampler

    async def sample_groups(
        self,
        prompts: Iterable[Prompt],
        num_groups: int,
        *,
        expected_version: str,
        seed: int | None = None,
        on_group: Callable[[], None] | None = None,
    ) -> SampledGroups:
        """Sample and judge groups until there are enough of them.

        Args:
            prompts: source of prompts; only those needed are taken, so an iterator can be used again.
            num_groups: groups wanted.
            expected_version: weight version that every token must come from.
            seed: makes the samples repeatable on the embedded server; a new one for every call. None sends no seed.
            on_group: called after each group, for a progress bar.

        Returns:
            num_groups groups.

        Raises:
            RolloutError: a server failed, or too few groups are left.
            RewardError: a reward is not finite.
            DataError: a prompt has a token outside the vocabulary.
        """
        source, prompt_sampler = iter(prompts), self.prompt_sampler
        retries_before = prompt_sampler.num_retries
        call = prompt_sampler.start_call(expected_version=expected_version, seed=seed, on_group=on_group)
        report = call.report
        kept: list[JudgedGroup] = []
        dropped: list[JudgedGroup] = []
        for refill_round in range(prompt_sampler.max_filter_rounds + 1):
            batch = list(islice(source, num_groups - len(kept)))
            if not batch:
                break
            report.refill_rounds = refill_round
            first = len(kept) + len(dropped)
            for group in await gather_all(
                self._sample(call, first + index, prompt) for index, prompt in enumerate(batch)
            ):
                (kept if prompt_sampler.keeps(group) else dropped).append(group)
        report.retries = prompt_sampler.num_retries - retries_before
        report.dropped_groups = len(dropped)
        if len(kept) < num_groups:
            raise prompt_sampler.too_few_error(report, num_kept=len(kept), num_groups=num_groups)
        return number_groups(kept, dropped, report)

    async def _sample(self, call: SamplingCall, number: int, prompt: Prompt) -> JudgedGroup:
        async with call.slots:
            completions = await self._complete(call, number, prompt)
        return self.prompt_sampler.judge(call, prompt, completions)

    async def _complete(self, call: SamplingCall, number: int, prompt: Prompt) -> list[Completion]:
        prompt_sampler = self.prompt_sampler
        completions: list[Completion] = []
        num_missing, prefix = prompt_sampler.samples_per_prompt, Prefix()
        for attempt in range(prompt_sampler.max_resamples + 1):
            for completion in await prompt_sampler.generate(
                prompt.token_ids,
                n=num_missing,
                max_new_tokens=prompt_sampler.max_response_length,
                seed=call.seed_of(number, attempt),
                prefix=prefix,
            ):
                if completion.finish_reason == "abort":
                    call.report.aborted += 1
                elif any(span.version != call.expected_version for span in completion.version_spans):
                    call.report.wrong_version += 1
                else:
                    completions.append(completion)
                    num_missing -= 1
            if num_missing == 0:
                return completions
        raise prompt_sampler.unusable_error(call, prompt, num_missing=num_missing)

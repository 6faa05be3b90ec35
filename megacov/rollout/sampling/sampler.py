"""Groups of judged samples: n completions of each prompt, refilled until there are enough groups to learn from."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from megacov.errors import RewardError, RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.wire import GenerateRequest, Prefix
from megacov.rollout.fleet.fleet import Fleet
from megacov.rollout.sampling.carried import CarriedGroup
from megacov.rollout.sampling.groups import JudgedGroup, SampledGroups, SamplingCall, SamplingReport
from megacov.rollout.tasks import gather_all
from megacov.types import Completion, Prompt

Verifier = Callable[[str, str], float]

_LARGEST_REWARD = 3.4e38  # of float32, in which rewards travel


@dataclass(slots=True, kw_only=True, eq=False)
class Sampler:
    """How groups are sampled and judged. Use it within one event loop, that of the clients.

    A program without an event loop keeps an `asyncio.Runner` and calls `runner.run(sampler.sample_groups(...))`.

    clients: servers of the same model; a request goes to the one with the fewest under way. A fleet is one.
    verify: (text of the completion, answer of the prompt) -> reward, finite; called on the event loop.
    samples_per_prompt: completions in a group.
    max_response_length: tokens of a completion at most.
    temperature, top_p, top_k, stop: how tokens are drawn and completions ended.
    max_concurrency: prompts under way at a time.
    max_resamples: further requests for a prompt whose completions were aborted or came from other weights.
    filter_groups: drop groups whose rewards are all equal, and refill from further prompts.
    max_filter_rounds: refills at most.
    """

    clients: Sequence[RolloutClient | Fleet]
    verify: Verifier
    samples_per_prompt: int
    max_response_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: tuple[str, ...] = ()
    max_concurrency: int = 256
    max_resamples: int = 3
    filter_groups: bool = False
    max_filter_rounds: int = 8
    _under_way: Counter[RolloutClient | Fleet] = field(default_factory=Counter, init=False, repr=False)

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
            prompts: as many are taken as are needed; give an iterator to go on from there the next time.
            num_groups: groups wanted.
            expected_version: weight version that every token must come from.
            seed: makes the samples repeatable on the embedded server; a new one for every call. None leaves it to the
                server.
            on_group: called after each group, for a progress bar.

        Returns:
            num_groups groups.

        Raises:
            RolloutError: if a server fails, or too few groups are left.
            RewardError: if a reward is not finite.
            DataError: if a prompt has a token outside the vocabulary.
        """
        source = iter(prompts)
        report = SamplingReport()
        retries_before = self._num_retries()
        call = SamplingCall(report, expected_version, seed, on_group, asyncio.Semaphore(self.max_concurrency))
        kept: list[JudgedGroup] = []
        dropped: list[JudgedGroup] = []
        for refill_round in range(self.max_filter_rounds + 1):
            batch = list(islice(source, num_groups - len(kept)))
            if not batch:
                break
            report.refill_rounds = refill_round
            first = len(kept) + len(dropped)
            for group in await gather_all(
                self._sample(call, first + index, prompt) for index, prompt in enumerate(batch)
            ):
                is_kept = group.rewards_differ or not self.filter_groups
                (kept if is_kept else dropped).append(group)
        report.retries = self._num_retries() - retries_before
        report.dropped_groups = len(dropped)
        if len(kept) < num_groups:
            raise RolloutError(self._too_few(len(kept), num_groups, report))
        return self._sampled(kept, dropped, report)

    def _sampled(
        self,
        kept: Sequence[JudgedGroup],
        dropped: Sequence[JudgedGroup],
        report: SamplingReport,
        carried: Iterable[CarriedGroup] = (),
    ) -> SampledGroups:
        numbered = [group.samples(number) for number, group in enumerate([*kept, *dropped])]
        return SampledGroups(
            samples=[sample for samples in numbered[: len(kept)] for sample in samples],
            dropped=[sample for samples in numbered[len(kept) :] for sample in samples],
            report=report,
            carried=tuple(carried),
        )

    async def _sample(self, call: SamplingCall, number: int, prompt: Prompt) -> JudgedGroup:
        async with call.slots:
            completions = await self._complete(call, number, prompt)
        return self._judged(call, prompt, completions)

    def _judged(self, call: SamplingCall, prompt: Prompt, completions: list[Completion]) -> JudgedGroup:
        group = JudgedGroup(prompt, completions, [self._judge(prompt, completion) for completion in completions])
        group.count(call.report)
        if call.on_group is not None:
            call.on_group()
        return group

    async def _complete(self, call: SamplingCall, number: int, prompt: Prompt) -> list[Completion]:
        completions: list[Completion] = []
        num_missing, prefix = self.samples_per_prompt, Prefix()
        for attempt in range(self.max_resamples + 1):
            request = self._request(
                prompt.token_ids,
                n=num_missing,
                max_new_tokens=self.max_response_length,
                seed=call.seed_of(number, attempt),
                prefix=prefix,
            )
            for completion in await self._generate(request):
                if completion.finish_reason == "abort":
                    call.report.aborted += 1
                elif any(span.version != call.expected_version for span in completion.version_spans):
                    call.report.wrong_version += 1
                else:
                    completions.append(completion)
                    num_missing -= 1
            if num_missing == 0:
                return completions
        raise RolloutError(self._never_right(call, prompt, num_missing))

    def _request(
        self, input_ids: tuple[int, ...], *, n: int, max_new_tokens: int, seed: int | None, prefix: Prefix
    ) -> GenerateRequest:
        return GenerateRequest(
            input_ids=input_ids,
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop,
            sampling_seed=seed,
            prefix=prefix,
        )

    async def _generate(self, request: GenerateRequest) -> list[Completion]:
        client = min(self.clients, key=self._under_way.__getitem__)
        self._under_way[client] += 1
        try:
            return await client.generate(request)
        finally:
            self._under_way[client] -= 1

    def _judge(self, prompt: Prompt, completion: Completion) -> float:
        reward = float(self.verify(completion.text, prompt.answer))
        if not abs(reward) <= _LARGEST_REWARD:
            raise RewardError(
                f"The verifier gave {reward} for a completion of prompt {prompt.index}; it must give a finite number "
                "that float32 can hold."
            )
        return reward

    def _num_retries(self) -> int:
        return sum(client.num_retries for client in self.clients)

    def _never_right(self, call: SamplingCall, prompt: Prompt, num_missing: int) -> str:
        return (
            f"{num_missing} completions of prompt {prompt.index} were aborted or did not come from weight version "
            f"{call.expected_version}, after {self.max_resamples + 1} attempts; see that nothing else pauses or "
            "updates the rollout servers."
        )

    def _too_few(self, num_kept: int, num_groups: int, report: SamplingReport) -> str:
        got = f"Only {num_kept} of {num_groups} groups can be used after {report.refill_rounds} refills"
        if not self.filter_groups:
            return f"{got}; give at least {num_groups} prompts."
        return (
            f"{got}: {report.all_right_groups} groups were right throughout and {report.all_wrong_groups} wrong "
            "throughout; set rollout.filter_groups to false, raise rollout.max_filter_rounds, or use prompts that the "
            "model answers rightly some of the time."
        )

"""Completions of one prompt: requested from the least busy server, and judged."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from megacov.errors import RewardError, RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.wire import GenerateRequest, Prefix
from megacov.rollout.fleet.fleet import Fleet
from megacov.rollout.sampling.groups import JudgedGroup, SamplingCall, SamplingReport
from megacov.rollout.tasks import gather_all
from megacov.types import Completion, Prompt, Verdict

Verifier = Callable[[Prompt, Completion], Awaitable[Verdict]]

_LARGEST_REWARD = 3.4e38  # of float32, in which rewards travel


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """How many completions a prompt gets, and their temperature."""

    num_samples: int
    temperature: float


@dataclass(slots=True, kw_only=True, eq=False)
class PromptSampler:
    """How completions are sampled and judged. Use it within the clients' event loop.

    clients: servers of the same model; a request goes to the one with the fewest requests under way. A fleet is one.
    verify: awaited for each completion, all completions of a group at once; cancelled where the batch ends without it.
    samples_per_prompt: completions in a group.
    max_response_length: longest completion. [tokens]
    by_source: settings of each source's prompts, in place of `samples_per_prompt` and `temperature`; empty if all are
        sampled alike.
    temperature, top_p, top_k, stop, stop_token_ids: how tokens are drawn and completions ended.
    max_concurrency: largest number of prompts that are generated at a time.
    max_resamples: further requests for a prompt whose completions were aborted or came from other weights.
    filter_groups: whether groups whose rewards are all equal are dropped and replaced by further prompts.
    max_filter_rounds: largest number of further prompts, as a multiple of the groups wanted.
    """

    clients: Sequence[RolloutClient | Fleet]
    verify: Verifier
    samples_per_prompt: int
    max_response_length: int
    by_source: tuple[GroupSettings, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_concurrency: int = 256
    max_resamples: int = 3
    filter_groups: bool = False
    max_filter_rounds: int = 8
    _under_way: Counter[RolloutClient | Fleet] = field(default_factory=Counter, init=False, repr=False)

    @property
    def num_retries(self) -> int:
        """HTTP requests sent again so far."""
        return sum(client.num_retries for client in self.clients)

    def settings_of(self, prompt: Prompt) -> GroupSettings:
        """How a prompt of its source is sampled."""
        if self.by_source:
            return self.by_source[prompt.source]
        return GroupSettings(self.samples_per_prompt, self.temperature)

    def start_call(
        self, *, expected_version: str, seed: int | None, on_group: Callable[[], None] | None
    ) -> SamplingCall:
        """Start a batch with an empty report; `SamplingCall` describes the arguments."""
        slots = asyncio.Semaphore(self.max_concurrency)
        return SamplingCall(SamplingReport(), expected_version, seed, on_group, slots)

    async def generate(
        self,
        input_ids: tuple[int, ...],
        *,
        n: int,
        max_new_tokens: int,
        seed: int | None,
        prefix: Prefix,
        temperature: float | None = None,
    ) -> list[Completion]:
        """Request n completions from the least busy server.

        Args:
            input_ids: prompt, and the tokens so far of a completion that is continued.
            n: completions wanted.
            max_new_tokens: longest completion. [tokens]
            seed: seed of the request; None sends none.
            prefix: shared by all requests of one prompt.
            temperature: sampling temperature; None for the sampler's own.

        Returns:
            n completions.

        Raises:
            RolloutError: no server answered.
            DataError: a token is outside the vocabulary.
        """
        request = GenerateRequest(
            input_ids=input_ids,
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=self.temperature if temperature is None else temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            sampling_seed=seed,
            prefix=prefix,
        )
        client = min(self.clients, key=self._under_way.__getitem__)
        self._under_way[client] += 1
        try:
            return await client.generate(request)
        finally:
            self._under_way[client] -= 1

    async def judge(self, prompt: Prompt, completions: list[Completion]) -> JudgedGroup:
        """Judge all completions of a finished group at once; raises RewardError if a reward is not finite."""
        verdicts = await gather_all(self._verdict(prompt, completion) for completion in completions)
        return JudgedGroup(prompt, completions, verdicts)

    def keeps(self, group: JudgedGroup) -> bool:
        """Whether the group is trained on; dynamic filtering drops groups whose rewards are all equal."""
        return group.rewards_differ or not self.filter_groups

    def unusable_error(self, call: SamplingCall, prompt: Prompt, *, num_missing: int) -> RolloutError:
        """The error for a prompt that still lacks completions after the last attempt."""
        return RolloutError(
            f"{num_missing} completions of prompt {prompt.index} were aborted or did not come from weight version "
            f"{call.expected_version}, after {self.max_resamples + 1} attempts; see that nothing else pauses or "
            "updates the rollout servers."
        )

    def too_few_error(self, report: SamplingReport, *, num_kept: int, num_groups: int) -> RolloutError:
        """The error for a batch with too few groups after the last refill."""
        got = f"Only {num_kept} of {num_groups} groups can be used after {report.refills} further prompts"
        if not self.filter_groups:
            return RolloutError(f"{got}; give at least {num_groups} prompts.")
        equal = f", and of equal worth in {report.equal_groups}" if report.equal_groups else ""
        return RolloutError(
            f"{got}: all completions were right in {report.all_right_groups} groups and wrong in "
            f"{report.all_wrong_groups}{equal}; set rollout.filter_groups to false, raise rollout.max_filter_rounds, "
            "or use prompts that the model answers rightly some of the time."
        )

    async def _verdict(self, prompt: Prompt, completion: Completion) -> Verdict:
        verdict = await self.verify(prompt, completion)
        if not abs(verdict.reward) <= _LARGEST_REWARD:
            raise RewardError(
                f"The verifier gave {verdict.reward} for a completion of prompt {prompt.index}; it must give a finite "
                "number that float32 can hold."
            )
        return verdict

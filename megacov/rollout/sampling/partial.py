"""Partial rollouts: a batch ends before its slowest completions do, and the next batch continues them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from megacov.errors import RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.wire import Prefix
from megacov.rollout.fleet.fleet import Fleet
from megacov.rollout.sampling.carried import (
    NOT_BEGUN,
    CarriedGroup,
    DecodeTokens,
    is_too_old,
    join,
    unchecked_token_dropped,
)
from megacov.rollout.sampling.groups import JudgedGroup, SampledGroups, SamplingCall, number_groups
from megacov.rollout.sampling.prompt_sampler import PromptSampler
from megacov.rollout.tasks import gather_all
from megacov.types import Completion, Prompt

_ABORT_AGAIN_S = 0.2
_ABORT_TIMEOUT_S = 10.0  # of one call
_END_TIMEOUT_S = 60.0


@dataclass(slots=True, eq=False)
class _Growing:
    """A group under way.

    round: refill round, 0 for groups from the start of the batch.
    prefix: remembers which server has the prompt in its cache.
    """

    number: int
    prompt: Prompt
    pieces: list[Completion]
    round: int = 0
    prefix: Prefix = field(default_factory=Prefix)

    @property
    def is_finished(self) -> bool:
        return all(piece.finish_reason != "abort" for piece in self.pieces)

    def requests(self) -> list[list[int]]:
        """Completions by request: all without a token share one, each of the others has its own."""
        unfinished = [copy for copy, piece in enumerate(self.pieces) if piece.finish_reason == "abort"]
        fresh = [copy for copy in unfinished if not self.pieces[copy].token_ids]
        return [*([fresh] if fresh else []), *([copy] for copy in unfinished if self.pieces[copy].token_ids)]


@dataclass(slots=True, eq=False)
class _Batch:
    """One call of `sample_batch`: groups under way by their tasks, and finished groups.

    oldest: oldest weight version that may still be trained on.
    """

    call: SamplingCall
    oldest: int
    tasks: dict[asyncio.Task[None], _Growing] = field(default_factory=dict)
    kept: list[tuple[_Growing, JudgedGroup]] = field(default_factory=list)
    dropped: list[JudgedGroup] = field(default_factory=list)
    num_started: int = 0
    is_over: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class PartialSampler:
    """Samples batches that may leave completions unfinished, and continues them in the next batch.

    decode: turns token ids into text without special tokens, as the servers do.
    max_staleness: weight versions by which a token may lag behind the weights trained on it.
    extra_prompts: prompts sampled at the same time beyond those wanted.
    partial_after_s: time after which a batch may end with fewer groups; None waits for all. [s]
    group_multiple: the number of groups trained on is a multiple of this.
    fewest_groups: smallest number of groups that can be trained on.
    """

    prompt_sampler: PromptSampler
    decode: DecodeTokens
    max_staleness: int
    extra_prompts: int = 0
    partial_after_s: float | None = None
    group_multiple: int = 1
    fewest_groups: int = 1

    async def sample_batch(
        self,
        prompts: Iterable[Prompt],
        num_groups: int,
        *,
        carried: Sequence[CarriedGroup],
        expected_version: str,
        trained_version: int,
        seed: int | None = None,
        on_group: Callable[[], None] | None = None,
    ) -> SampledGroups:
        """Continue carried groups, begin further ones as needed, and stop once enough groups are finished.

        Args:
            prompts: source of prompts; only those needed are taken, so an iterator can be used again.
            num_groups: groups wanted; after `partial_after_s` fewer are enough.
            carried: groups left by the previous batch; they come first.
            expected_version: weight version that every new token must come from.
            trained_version: version of the weights that will be trained on the groups.
            seed: makes the samples repeatable on the embedded server, except where they depend on timing.
            on_group: called after each group, for a progress bar.

        Returns:
            The finished groups, and those left for the next batch.

        Raises:
            RolloutError: a server failed, or too few groups are left.
            RewardError: a reward is not finite.
            DataError: a prompt has a token outside the vocabulary.
        """
        source, retries_before = iter(prompts), self.prompt_sampler.num_retries
        call = self.prompt_sampler.start_call(expected_version=expected_version, seed=seed, on_group=on_group)
        batch = _Batch(call, oldest=trained_version - self.max_staleness)
        num_fresh = max(0, num_groups + self.extra_prompts - len(carried))
        try:
            for group in [*carried, *map(_fresh, islice(source, num_fresh))]:
                self._start(batch, group)
            await self._wait_for_enough(batch, source, num_groups)
            await self._end(batch)
        finally:
            for task in batch.tasks:
                task.cancel()
            await asyncio.gather(*batch.tasks, return_exceptions=True)
        call.report.retries = self.prompt_sampler.num_retries - retries_before
        return self._sorted_out(batch, num_groups)

    def _start(self, batch: _Batch, group: CarriedGroup, *, refill_round: int = 0) -> None:
        number, report = self.prompt_sampler.samples_per_prompt, batch.call.report
        pieces = [*group.completions, *[NOT_BEGUN] * number][:number]
        for copy, piece in enumerate(pieces):
            if is_too_old(piece, oldest=batch.oldest):
                pieces[copy] = NOT_BEGUN
                report.stale_dropped += 1
            elif piece.finish_reason == "abort":
                report.continued_tokens += len(piece.token_ids)
        growing = _Growing(batch.num_started, group.prompt, pieces, refill_round)
        batch.num_started += 1
        batch.tasks[asyncio.create_task(self._grow(batch, growing))] = growing

    async def _wait_for_enough(self, batch: _Batch, source: Iterable[Prompt], num_groups: int) -> None:
        late_at = None if self.partial_after_s is None else time.monotonic() + self.partial_after_s
        while len(batch.kept) < num_groups:
            left_s = None if late_at is None else late_at - time.monotonic()
            is_late = left_s is not None and left_s <= 0.0
            if is_late and self._usable(len(batch.kept)) > 0:
                return
            if not batch.tasks:
                batch.call.report.dropped_groups = len(batch.dropped)
                raise self.prompt_sampler.too_few_error(
                    batch.call.report, num_kept=len(batch.kept), num_groups=num_groups
                )
            done, _ = await asyncio.wait(
                batch.tasks, timeout=None if is_late else left_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in sorted(done, key=lambda task: batch.tasks[task].number):
                group = batch.tasks.pop(task)
                task.result()
                if not self._keeps(batch, group) and group.round < self.prompt_sampler.max_filter_rounds:
                    for fresh in map(_fresh, islice(source, 1)):
                        self._start(batch, fresh, refill_round=group.round + 1)

    def _keeps(self, batch: _Batch, group: _Growing) -> bool:
        """Judge a finished group, and return whether it is trained on."""
        judged = self.prompt_sampler.judge(batch.call, group.prompt, group.pieces)
        batch.call.report.refill_rounds = max(batch.call.report.refill_rounds, group.round)
        is_kept = self.prompt_sampler.keeps(judged)
        if is_kept:
            batch.kept.append((group, judged))
        else:
            batch.dropped.append(judged)
        return is_kept

    def _usable(self, num_groups: int) -> int:
        usable = num_groups - num_groups % self.group_multiple
        return usable if usable >= self.fewest_groups else 0

    async def _grow(self, batch: _Batch, group: _Growing) -> None:
        """Extend the completions until all are finished, or the batch is over; then pieces stay as they are."""
        async with batch.call.slots:
            for attempt in range(self.prompt_sampler.max_resamples + 1):
                if batch.is_over or group.is_finished:
                    return
                await gather_all(self._extend(batch, group, copies, attempt) for copies in group.requests())
        if not (batch.is_over or group.is_finished):
            num_missing = sum(piece.finish_reason == "abort" for piece in group.pieces)
            raise self.prompt_sampler.unusable_error(batch.call, group.prompt, num_missing=num_missing)

    async def _extend(self, batch: _Batch, group: _Growing, copies: list[int], attempt: int) -> None:
        piece, report = group.pieces[copies[0]], batch.call.report
        completions = await self.prompt_sampler.generate(
            group.prompt.token_ids + piece.token_ids,
            n=len(copies),
            max_new_tokens=self.prompt_sampler.max_response_length - len(piece.token_ids),
            seed=batch.call.seed_of(group.number, attempt, copies[0]),
            prefix=group.prefix,
        )
        for copy, completion in zip(copies, completions, strict=True):
            if any(span.version != batch.call.expected_version for span in completion.version_spans):
                report.wrong_version += 1
                continue
            report.aborted += completion.finish_reason == "abort" and not batch.is_over
            rest = unchecked_token_dropped(completion, decode=self.decode)
            group.pieces[copy] = join(piece, rest, decode=self.decode, stop=self.prompt_sampler.stop)

    async def _end(self, batch: _Batch) -> None:
        """Have the servers answer with what they have. Completions that are not answered keep their tokens so far."""
        batch.is_over = True
        deadline = time.monotonic() + _END_TIMEOUT_S
        under_way = set(batch.tasks)
        while under_way and time.monotonic() < deadline:
            # Repeat: a request may have been on its way to a server, or have moved to another one.
            await asyncio.gather(*(_abort_all(client) for client in self._busy_servers()))
            _, under_way = await asyncio.wait(under_way, timeout=_ABORT_AGAIN_S)
        for task in batch.tasks.keys() - under_way:
            task.result()

    def _busy_servers(self) -> list[RolloutClient]:
        busy: list[RolloutClient] = []
        for client in self.prompt_sampler.clients:
            busy += client.membership.busy if isinstance(client, Fleet) else [client]
        return busy

    def _sorted_out(self, batch: _Batch, num_groups: int) -> SampledGroups:
        """Take the groups that ended first; everything else is carried to the next batch."""
        report = batch.call.report
        # num_groups itself is always a usable number.
        num_used = min(num_groups, self._usable(len(batch.kept)))
        # Shuffle: in start or finish order, the first update would get all carried, or all short, completions.
        used = sorted(
            batch.kept[:num_used], key=lambda pair: random.Random(f"{batch.oldest}/{pair[0].prompt.index}").random()
        )
        left = [*(group for group, _ in batch.kept[num_used:]), *batch.tasks.values()]
        carried = [CarriedGroup(group.prompt, tuple(group.pieces)) for group in left]
        report.dropped_groups = len(batch.dropped)
        report.carried = sum(piece != NOT_BEGUN for group in carried for piece in group.completions)
        return number_groups([judged for _, judged in used], batch.dropped, report, carried)


def _fresh(prompt: Prompt) -> CarriedGroup:
    return CarriedGroup(prompt, ())


async def _abort_all(client: RolloutClient) -> None:
    """Abort all requests of a server. Ids would not do: SGLang gives the copies of a request ids it does not report."""
    with contextlib.suppress(RolloutError, TimeoutError):
        async with asyncio.timeout(_ABORT_TIMEOUT_S):
            await client.abort_request(None)

"""Partial rollouts: a phase ends before its slowest completions do, and the next one goes on with what they have."""

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
from megacov.rollout.sampling.groups import JudgedGroup, SampledGroups, SamplingCall, SamplingReport
from megacov.rollout.sampling.sampler import Sampler
from megacov.rollout.tasks import gather_all
from megacov.types import Completion, Prompt

_ABORT_AGAIN_S = 0.2
_ABORT_TIMEOUT_S = 10.0  # of one call
_END_TIMEOUT_S = 60.0


@dataclass(slots=True, eq=False)
class _Growing:
    """A group under way.

    round: of refilling, 0 at the beginning of the phase.
    prefix: of the server that has its prompt in its cache.
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
        """Which completions go into a request together: those without a token, and each of the others alone."""
        unfinished = [copy for copy, piece in enumerate(self.pieces) if piece.finish_reason == "abort"]
        fresh = [copy for copy in unfinished if not self.pieces[copy].token_ids]
        return [*([fresh] if fresh else []), *([copy] for copy in unfinished if self.pieces[copy].token_ids)]


@dataclass(slots=True, eq=False)
class _Phase:
    """One call of `sample_phase`: the groups under way by their tasks, and those that came to an end.

    oldest: weight version of a token that may still be trained on.
    """

    call: SamplingCall
    oldest: int
    tasks: dict[asyncio.Task[None], _Growing] = field(default_factory=dict)
    kept: list[tuple[_Growing, JudgedGroup]] = field(default_factory=list)
    dropped: list[JudgedGroup] = field(default_factory=list)
    num_started: int = 0
    is_over: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class PartialSampler(Sampler):
    """A sampler that can leave completions unfinished, and go on with them the next time.

    decode: token ids to text without special tokens, as the servers do it.
    max_staleness: weight versions that a token may be behind those that are trained on it.
    extra_prompts: sampled at the same time beyond those that are wanted.
    partial_after_s: a phase is content with fewer groups after this time; None waits for all. [s]
    group_multiple: groups that are trained on come in multiples of this.
    fewest_groups: that can be trained on.
    """

    decode: DecodeTokens
    max_staleness: int
    extra_prompts: int = 0
    partial_after_s: float | None = None
    group_multiple: int = 1
    fewest_groups: int = 1

    async def sample_phase(
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
        """Go on with what was carried, begin what else is needed, and stop when enough groups are there.

        Args:
            prompts: as many are taken as are needed; give an iterator to go on from there the next time.
            num_groups: groups wanted; after `partial_after_s` fewer will do.
            carried: from the phase before; first in line.
            expected_version: weight version that every new token must come from.
            trained_version: of the weights that will be trained on the groups.
            seed: makes the samples repeatable on the embedded server, as far as time does not enter.
            on_group: called after each group, for a progress bar.

        Returns:
            The groups, and what is carried on.

        Raises:
            RolloutError: if a server fails, or too few groups are left.
            RewardError: if a reward is not finite.
            DataError: if a prompt has a token outside the vocabulary.
        """
        source, report, retries_before = iter(prompts), SamplingReport(), self._num_retries()
        call = SamplingCall(report, expected_version, seed, on_group, asyncio.Semaphore(self.max_concurrency))
        phase = _Phase(call, oldest=trained_version - self.max_staleness)
        num_fresh = max(0, num_groups + self.extra_prompts - len(carried))
        try:
            for group in [*carried, *map(_fresh, islice(source, num_fresh))]:
                self._start(phase, group)
            await self._wait_for_enough(phase, source, num_groups)
            await self._end(phase)
        finally:
            for task in phase.tasks:
                task.cancel()
            await asyncio.gather(*phase.tasks, return_exceptions=True)
        report.retries = self._num_retries() - retries_before
        return self._sorted_out(phase, num_groups)

    def _start(self, phase: _Phase, group: CarriedGroup, *, refill_round: int = 0) -> None:
        pieces = [*group.completions, *[NOT_BEGUN] * self.samples_per_prompt][: self.samples_per_prompt]
        report = phase.call.report
        for copy, piece in enumerate(pieces):
            if is_too_old(piece, oldest=phase.oldest):
                pieces[copy] = NOT_BEGUN
                report.stale_dropped += 1
            elif piece.finish_reason == "abort":
                report.continued_tokens += len(piece.token_ids)
        growing = _Growing(phase.num_started, group.prompt, pieces, refill_round)
        phase.num_started += 1
        phase.tasks[asyncio.create_task(self._grow(phase, growing))] = growing

    async def _wait_for_enough(self, phase: _Phase, source: Iterable[Prompt], num_groups: int) -> None:
        late_at = None if self.partial_after_s is None else time.monotonic() + self.partial_after_s
        while len(phase.kept) < num_groups:
            left_s = None if late_at is None else late_at - time.monotonic()
            is_late = left_s is not None and left_s <= 0.0
            if is_late and self._usable(len(phase.kept)) > 0:
                return
            if not phase.tasks:
                phase.call.report.dropped_groups = len(phase.dropped)
                raise RolloutError(self._too_few(len(phase.kept), num_groups, phase.call.report))
            done, _ = await asyncio.wait(
                phase.tasks, timeout=None if is_late else left_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in sorted(done, key=lambda task: phase.tasks[task].number):
                group = phase.tasks.pop(task)
                task.result()
                if not self._keeps(phase, group) and group.round < self.max_filter_rounds:
                    for fresh in map(_fresh, islice(source, 1)):
                        self._start(phase, fresh, refill_round=group.round + 1)

    def _keeps(self, phase: _Phase, group: _Growing) -> bool:
        """Judge a finished group, and say whether it can be trained on."""
        judged = self._judged(phase.call, group.prompt, group.pieces)
        phase.call.report.refill_rounds = max(phase.call.report.refill_rounds, group.round)
        is_kept = judged.rewards_differ or not self.filter_groups
        if is_kept:
            phase.kept.append((group, judged))
        else:
            phase.dropped.append(judged)
        return is_kept

    def _usable(self, num_groups: int) -> int:
        usable = num_groups - num_groups % self.group_multiple
        return usable if usable >= self.fewest_groups else 0

    async def _grow(self, phase: _Phase, group: _Growing) -> None:
        """Until every completion is finished or the phase is over; then pieces stay as they are."""
        async with phase.call.slots:
            for attempt in range(self.max_resamples + 1):
                if phase.is_over or group.is_finished:
                    return
                await gather_all(self._extend(phase, group, copies, attempt) for copies in group.requests())
        if not (phase.is_over or group.is_finished):
            num_missing = sum(piece.finish_reason == "abort" for piece in group.pieces)
            raise RolloutError(self._never_right(phase.call, group.prompt, num_missing))

    async def _extend(self, phase: _Phase, group: _Growing, copies: list[int], attempt: int) -> None:
        piece, report = group.pieces[copies[0]], phase.call.report
        request = self._request(
            group.prompt.token_ids + piece.token_ids,
            n=len(copies),
            max_new_tokens=self.max_response_length - len(piece.token_ids),
            seed=phase.call.seed_of(group.number, attempt, copies[0]),
            prefix=group.prefix,
        )
        for copy, completion in zip(copies, await self._generate(request), strict=True):
            if any(span.version != phase.call.expected_version for span in completion.version_spans):
                report.wrong_version += 1
                continue
            report.aborted += completion.finish_reason == "abort" and not phase.is_over
            rest = unchecked_token_dropped(completion, decode=self.decode)
            group.pieces[copy] = join(piece, rest, decode=self.decode, stop=self.stop)

    async def _end(self, phase: _Phase) -> None:
        """Have the servers answer with what they have. What does not answer keeps what it had before."""
        phase.is_over = True
        deadline = time.monotonic() + _END_TIMEOUT_S
        under_way = set(phase.tasks)
        while under_way and time.monotonic() < deadline:
            # Again and again: a request may have been on its way, or have gone to another server.
            await asyncio.gather(*(_abort_all(client) for client in self._servers()))
            _, under_way = await asyncio.wait(under_way, timeout=_ABORT_AGAIN_S)
        for task in phase.tasks.keys() - under_way:
            task.result()

    def _servers(self) -> list[RolloutClient]:
        return [
            server for client in self.clients for server in (client.busy if isinstance(client, Fleet) else [client])
        ]

    def _sorted_out(self, phase: _Phase, num_groups: int) -> SampledGroups:
        """The groups to train on, those that ended first; whatever else was under way is carried."""
        report = phase.call.report
        # The wanted number itself is one that can be trained on.
        num_used = min(num_groups, self._usable(len(phase.kept)))
        # Mixed: in the order of their beginning or end, the first update would get all the carried or the short ones.
        used = sorted(
            phase.kept[:num_used], key=lambda pair: random.Random(f"{phase.oldest}/{pair[0].prompt.index}").random()
        )
        left = [*(group for group, _ in phase.kept[num_used:]), *phase.tasks.values()]
        carried = [CarriedGroup(group.prompt, tuple(group.pieces)) for group in left]
        report.dropped_groups = len(phase.dropped)
        report.carried = sum(piece != NOT_BEGUN for group in carried for piece in group.completions)
        return self._sampled([judged for _, judged in used], phase.dropped, report, carried)


def _fresh(prompt: Prompt) -> CarriedGroup:
    return CarriedGroup(prompt, ())


async def _abort_all(client: RolloutClient) -> None:
    """All, and not by their ids: SGLang gives the copies of a request ids of their own, which it does not tell."""
    with contextlib.suppress(RolloutError, TimeoutError):
        async with asyncio.timeout(_ABORT_TIMEOUT_S):
            await client.abort_request(None)

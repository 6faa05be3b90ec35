"""One batch while it is sampled: groups under way, and finished groups."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field

from megacov.rollout.client.wire import Prefix
from megacov.rollout.sampling.carried import (
    NOT_BEGUN,
    CarriedGroup,
    is_too_old,
    join,
    unchecked_token_dropped,
)
from megacov.rollout.sampling.groups import JudgedGroup, SampledGroups, SamplingCall, number_groups
from megacov.rollout.sampling.partial import PartialRollouts
from megacov.types import Completion, Prompt


@dataclass(slots=True, eq=False)
class GrowingGroup:
    """A group under way.

    number: place in the batch: carried groups first, then prompts in the order of the data.
    prefix: remembers which server has the prompt in its cache.
    """

    number: int
    prompt: Prompt
    pieces: list[Completion]
    prefix: Prefix = field(default_factory=Prefix)

    @property
    def is_finished(self) -> bool:
        """Whether no completion needs another request."""
        return all(piece.finish_reason != "abort" for piece in self.pieces)

    def requests(self) -> list[list[int]]:
        """Completions by request: all without a token share one, each of the others has its own."""
        unfinished = [copy for copy, piece in enumerate(self.pieces) if piece.finish_reason == "abort"]
        fresh = [copy for copy in unfinished if not self.pieces[copy].token_ids]
        return [*([fresh] if fresh else []), *([copy] for copy in unfinished if self.pieces[copy].token_ids)]


@dataclass(slots=True, eq=False)
class Batch:
    """One call of the sampler: groups under way by their tasks, and judged groups.

    partial: how the batch may leave completions unfinished; None if it must be whole.
    oldest: oldest weight version that may still be trained on, in partial rollouts.
    kept, dropped: judged groups that are part of the batch; in a whole batch in the order of the data.
    num_first: groups of a batch in which none is dropped, without those that are over-sampled.
    num_judged_kept: judged groups that filtering keeps, part of the batch or not.
    """

    call: SamplingCall
    partial: PartialRollouts | None = None
    oldest: int = 0
    tasks: dict[asyncio.Task[JudgedGroup | None], GrowingGroup] = field(default_factory=dict)
    kept: list[tuple[GrowingGroup, JudgedGroup]] = field(default_factory=list)
    dropped: list[tuple[GrowingGroup, JudgedGroup]] = field(default_factory=list)
    num_started: int = 0
    num_carried: int = 0
    num_first: int = 0
    num_judged_kept: int = 0
    is_over: bool = False
    _waiting: dict[int, tuple[GrowingGroup, JudgedGroup, bool]] = field(default_factory=dict)
    _num_settled: int = 0
    _ended: asyncio.Queue[asyncio.Task[JudgedGroup | None]] = field(default_factory=asyncio.Queue)

    def add(self, carried: CarriedGroup, *, num_completions: int) -> GrowingGroup:
        """Number a group, and drop those of its pieces that are too old."""
        pieces, report = [*carried.completions, *[NOT_BEGUN] * num_completions][:num_completions], self.call.report
        for copy, piece in enumerate(pieces):
            if is_too_old(piece, oldest=self.oldest):
                pieces[copy] = NOT_BEGUN
                report.stale_dropped += 1
            elif piece.finish_reason == "abort":
                report.continued_tokens += len(piece.token_ids)
        self.num_started += 1
        return GrowingGroup(self.num_started - 1, carried.prompt, pieces)

    def start(self, group: GrowingGroup, work: Coroutine[None, None, JudgedGroup | None]) -> None:
        """Start the work on a group, whose end `next_ended` reports."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended.put_nowait)
        self.tasks[task] = group

    async def next_ended(self, *, timeout_s: float | None) -> tuple[GrowingGroup, JudgedGroup] | None:
        """The next group whose work ends; None after the timeout. Raises what the work raised."""
        try:
            async with asyncio.timeout(timeout_s):
                task = await self._ended.get()
        except TimeoutError:
            return None
        group, judged = self.tasks.pop(task), task.result()
        assert judged is not None, "work ends without verdicts only once the batch is over"
        return group, judged

    def settle(self, group: GrowingGroup, judged: JudgedGroup, *, is_kept: bool, num_groups: int) -> None:
        """Make a judged group part of the batch, in a whole batch only once all groups before it are.

        Args:
            group: the group's place.
            judged: its verdicts.
            is_kept: whether filtering keeps it.
            num_groups: groups wanted; a whole batch takes nothing beyond the last of them.
        """
        self.num_judged_kept += is_kept
        if self.partial is not None:
            self._settle(group, judged, is_kept=is_kept)
            return
        self._waiting[group.number] = (group, judged, is_kept)
        while len(self.kept) < num_groups and self._num_settled in self._waiting:
            group, judged, is_kept = self._waiting.pop(self._num_settled)
            self._settle(group, judged, is_kept=is_kept)

    def _settle(self, group: GrowingGroup, judged: JudgedGroup, *, is_kept: bool) -> None:
        judged.count(self.call.report)
        (self.kept if is_kept else self.dropped).append((group, judged))
        self._num_settled += 1

    def count_refills(self, num_prompts: int) -> None:
        """Count how many of so many prompts were needed because groups were dropped."""
        report = self.call.report
        report.refills = max(0, num_prompts - self.num_first)
        report.refill_rounds = report.refills / max(1, self.num_first)

    def extend(self, group: GrowingGroup, copy: int, rest: Completion, *, stop: tuple[str, ...]) -> None:
        """Join a server's answer to a piece; in a whole batch, an aborted answer is dropped."""
        report, is_aborted = self.call.report, rest.finish_reason == "abort"
        if any(span.version != self.call.expected_version for span in rest.version_spans):
            report.wrong_version += 1
            return
        report.aborted += is_aborted and not self.is_over
        if self.partial is None:
            group.pieces[copy] = NOT_BEGUN if is_aborted else rest
            return
        decode = self.partial.decode
        rest = unchecked_token_dropped(rest, decode=decode)
        group.pieces[copy] = join(group.pieces[copy], rest, decode=decode, stop=stop)

    def result(self, num_groups: int) -> SampledGroups:
        """Take the groups that were kept first; everything else under way is carried to the next batch."""
        report = self.call.report
        dropped = [judged for _, judged in sorted(self.dropped, key=lambda pair: pair[0].number)]
        report.dropped_groups = len(dropped)
        if self.partial is None:
            self.count_refills(self._num_settled)
            report.aborted_groups, report.unused_groups = len(self.tasks), len(self._waiting)
            kept = [judged for _, judged in self.kept]
            return number_groups(kept, dropped, report, num_prompts=self._num_settled)
        self.count_refills(self.num_started)
        # num_groups itself is always a usable number.
        num_used = min(num_groups, self.partial.usable(len(self.kept)))
        # Shuffle: in start or finish order, the first update would get all carried, or all short, completions.
        used = sorted(
            self.kept[:num_used], key=lambda pair: random.Random(f"{self.oldest}/{pair[0].prompt.index}").random()
        )
        left = [*(group for group, _ in self.kept[num_used:]), *self.tasks.values()]
        carried = [CarriedGroup(group.prompt, tuple(group.pieces)) for group in left]
        report.carried = sum(piece != NOT_BEGUN for group in carried for piece in group.completions)
        num_prompts = self.num_started - self.num_carried
        return number_groups([judged for _, judged in used], dropped, report, carried, num_prompts=num_prompts)

"""The ranks of a trainer and its servers in one group, and how rank 0 sees one hand-over of weights among them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from megacov.errors import RolloutError
from megacov.rollout import RolloutClient
from megacov.weight_receiver.megacov_receiver import Board
from megacov.weight_sync.base import ServersFailedError

GRACE_S = 1.0
_POLL_S = 0.002
_SUM_BITS = 64


@dataclass
class ShardGroup:
    """A group of all ranks of the trainer, which come first, and all ranks of some servers.

    num_bytes: what one server takes in a push. [bytes]
    num_buckets: requests to each server in a push; 0 if none has weights.
    is_verified: whether the checksums of a push over this group have agreed.
    """

    name: str
    members: tuple[RolloutClient, ...]
    num_senders: int
    num_bytes: int = 0
    num_buckets: int = 0
    is_verified: bool = False

    def first_rank(self, place: int) -> int:
        """Rank in the group of the first rank of a server, or, behind the last server, the size of the group."""
        return self.num_senders + sum(member.weights.num_ranks for member in self.members[:place])

    @property
    def world_size(self) -> int:
        """Ranks of the group."""
        return self.first_rank(len(self.members))

    @property
    def receivers(self) -> dict[int, RolloutClient]:
        """Rank in the group -> client of its server."""
        owners = [member for member in self.members for _ in range(member.weights.num_ranks)]
        return dict(enumerate(owners, self.num_senders))


def _are_equal(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and (one - other) % (1 << _SUM_BITS) == 0


class HandOver:
    """One hand-over, as rank 0 sees it on the group's board."""

    def __init__(self, group: ShardGroup, board: Board, *, number: int, timeout_s: float) -> None:
        """Begin nothing yet.

        Args:
            group: who takes part.
            board: board of the group.
            number: number of the hand-over; each has a new one.
            timeout_s: deadline of the receivers. [s]
        """
        self.group, self._board, self.number, self._timeout_s = group, board, number, timeout_s

    def begin(self, kind: str, *, with_sums: bool) -> None:
        """Write what the receivers are to do when they are called next.

        Args:
            kind: "describe" their parameters, or "take" new ones.
            with_sums: whether they report checksums of what they have taken.
        """
        # A little longer, so that rank 0 still sees who is late when it is.
        timeout_s = self._timeout_s + GRACE_S
        task = {"number": self.number, "kind": kind, "with_sums": with_sums, "timeout_s": timeout_s}
        self._board.write("task", task)

    async def watch(self) -> None:
        """Let all ranks begin once all have agreed, and wait until all have ended well.

        Raises:
            ServersFailedError: a rank has failed.
        """
        ranks = range(self.group.world_size)
        await self._all_there("ready", ranks)
        self._board.write(self._key("go"), True)
        await self._all_there("done", ranks)

    def stop(self) -> None:
        """Let nobody begin who has not."""
        with suppress(RuntimeError):  # the store is gone, and so is everybody's way to begin
            if not self._board.has([self._key("go")]):
                self._board.write(self._key("go"), False)

    def late(self) -> ServersFailedError:
        """What to raise at the deadline. It blames the servers that have not agreed, where somebody has not.

        Once all have agreed, a rank may be late since it waits for another one, so no server is blamed.
        """
        failures, why = {}, f"shards were not all there within {self._timeout_s:g} s."
        with suppress(RuntimeError):  # the store is gone
            if not self._board.has([self._key("go")]):
                late = [
                    rank for rank in range(self.group.world_size) if not self._board.has([self._key(f"ready/{rank}")])
                ]
                names = {rank: self._name(rank) for rank in late}
                why = f"{', '.join(names.values())} did not agree within {self._timeout_s:g} s."
                failures = {
                    client: RolloutError(f"{client.address} did not agree within {self._timeout_s:g} s.")
                    for rank, client in self.group.receivers.items()
                    if rank in names
                }
        return ServersFailedError(failures, why)

    def check_has_ended(self, client: RolloutClient) -> None:
        """Refuse a server whose receiver returned without a report; raises ServersFailedError, which blames nobody."""
        ranks = [rank for rank, owner in self.group.receivers.items() if owner is client]
        try:
            has_ended = self._board.has([self._key(f"done/{rank}") for rank in ranks])
        except RuntimeError as error:  # of torch
            raise ServersFailedError({}, f"the store of the group is gone ({error}).") from error
        if not has_ended:
            raise ServersFailedError(
                {},
                f"the receiver of {client.address} has reported nothing: the server was started anew, "
                "or has lost the group's store.",
            )

    async def results(self, ranks: Iterable[int]) -> dict[int, Any]:
        """What these ranks have reported at their end; raises ServersFailedError if one has failed."""
        ranks = list(ranks)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._all_there("done", ranks)
        except TimeoutError as error:
            raise ServersFailedError({}, "the receiver of a server has reported nothing.") from error
        return {rank: self._read(rank) for rank in ranks}

    def compare_sums(self) -> None:
        """Compare the checksums of what was sent with those of what the servers hold, if they were made.

        Raises:
            ServersFailedError: names the servers that hold other bits, and one tensor of each.
        """
        expected: dict[int, Counter[str]] = {rank: Counter() for rank in self.group.receivers}
        for sender in range(self.group.num_senders):
            for rank, sums in self._read(sender).get("sums", {}).items():
                expected[int(rank)].update(sums)
        failures: dict[RolloutClient, RolloutError] = {}
        for rank, client in self.group.receivers.items():
            sent, found = expected[rank], self._read(rank)["sums"]
            wrong = [name for name in sorted({*sent, *found}) if not _are_equal(sent.get(name), found.get(name))]
            if wrong:
                failures[client] = RolloutError(
                    f"{client.address} holds other bits than were sent in {len(wrong)} tensors, such as {wrong[0]}."
                )
        if failures:
            raise ServersFailedError(failures)

    def clear(self) -> None:
        """Remove the messages of a hand-over that has ended."""
        names = [f"{what}/{rank}" for what in ("ready", "done") for rank in range(self.group.world_size)]
        self._board.remove(map(self._key, (*names, "go", "failures")))

    def _key(self, name: str) -> str:
        return f"{self.number}/{name}"

    def _read(self, rank: int) -> Any:
        return self._board.read(self._key(f"done/{rank}"), timeout_s=self._timeout_s)

    async def _all_there(self, what: str, ranks: Sequence[int]) -> None:
        keys = [self._key(f"{what}/{rank}") for rank in ranks]
        try:
            while not self._board.has(keys):
                self.raise_failures()
                await asyncio.sleep(_POLL_S)
            self.raise_failures()
        except RuntimeError as error:  # of torch
            raise ServersFailedError({}, f"the store of the group is gone ({error}).") from error

    def raise_failures(self) -> None:
        """Raise what ranks have reported.

        Servers are blamed only if they are at fault, and no rank of the trainer is: not for having lost another rank.

        Raises:
            ServersFailedError: a rank has failed.
        """
        if self._board.count(self._key("failures")) == 0:
            return
        ranks = [rank for rank in range(self.group.world_size) if self._board.has([self._key(f"done/{rank}")])]
        reports = {rank: report for rank in ranks if "error" in (report := self._read(rank))}
        texts = {rank: f"{self._name(rank)}: {report['error']}" for rank, report in reports.items()}
        at_fault = [rank for rank, report in reports.items() if not report["has_lost_peer"]]
        senders = [texts[rank] for rank in at_fault if rank < self.group.num_senders]
        if senders or not at_fault:
            raise ServersFailedError({}, "; ".join(senders or texts.values()))
        receivers = self.group.receivers
        raise ServersFailedError({receivers[rank]: RolloutError(texts[rank]) for rank in at_fault})

    def _name(self, rank: int) -> str:
        receivers = self.group.receivers
        return receivers[rank].address if rank in receivers else f"rank {rank} of the trainer"

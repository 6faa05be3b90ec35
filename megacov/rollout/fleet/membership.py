"""Which servers of a fleet serve: they are watched, lost, started anew, given weights, added and drained."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from megacov.errors import RolloutError, WeightSyncError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.connection import RequestRefusedError
from megacov.rollout.fleet.address_file import AddressFile
from megacov.rollout.fleet.member import Member
from megacov.rollout.fleet.recovery import BringUpToDate, Check, make_well, wait_until_well
from megacov.rollout.tasks import gather_all

Result = TypeVar("Result")


@dataclass(kw_only=True, eq=False)
class Membership:
    """The servers of a fleet. Use it within one event loop, that of the clients.

    members: at least one; all hold the same weights at the beginning. `wait_ready` has them serve.
    make_client: for the address of a server that was added or started anew.
    bring_up_to_date: gives a server the current weights, checks that it has them, and lets it go on. None where that
        cannot be done between two pushes.
    check: refuses a server that cannot be used.
    address_file: names the servers there should be, where that changes.
    max_restarts: in a row, of one server that this process has started. [restarts]
    start_timeout_s: until a restarted server must generate, and for which a request waits for any server. [s]
    watch_s: between two looks at all servers. [s]
    health_timeout_s: for one sign of health; two missing in a row are too many. [s]
    versions: of all weights that servers are given, which the owner adds before it gives them. One that holds others
        has been started anew by somebody else. Nothing is checked while this is empty.
    receiving: clients of the servers that a push of new weights goes to; the same list always.
    num_failovers: requests that went on to another server. [requests]
    """

    members: list[Member]
    make_client: Callable[[str], RolloutClient]
    bring_up_to_date: BringUpToDate | None
    check: Check | None = None
    address_file: AddressFile | None = None
    max_restarts: int = 0
    start_timeout_s: float = 300.0
    watch_s: float = 2.0
    health_timeout_s: float = 30.0
    versions: set[str] = field(default_factory=set, init=False)
    receiving: list[RolloutClient] = field(default_factory=list, init=False)
    num_failovers: int = field(default=0, init=False)
    _retries_of_former: int = field(default=0, init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        """All serve at the beginning."""
        self._note_change()

    @property
    def num_retries(self) -> int:
        """HTTP calls that were sent again, so far."""
        return self._retries_of_former + sum(member.client.num_retries for member in self.members)

    @property
    def num_restarts(self) -> int:
        """Times that servers were started anew, so far."""
        return sum(member.restarts for member in self.members)

    @property
    def may_recover(self) -> bool:
        """Whether some server that does not serve now may come back."""
        return any(member.may_come_back for member in self.members)

    @property
    def serving(self) -> list[RolloutClient]:
        """Clients of the servers that get requests now."""
        return [member.client for member in self.members if member.serves]

    async def wait_ready(self) -> None:
        """Wait until all servers are well that shall serve from the beginning, `start_timeout_s` at most.

        Those of others that are not by then are lost, as if that came later, unless none is left.

        Raises:
            RolloutError: no server is well, or one cannot be used, or one that this process has started is not well.
        """
        waits = (
            wait_until_well(
                member.client,
                check=self.check,
                bring_up_to_date=self.bring_up_to_date,
                timeout_s=self.start_timeout_s,
            )
            for member in self.members
        )
        late = {member: why for member, why in zip(self.members, await gather_all(waits), strict=True) if why}
        if len(late) == len(self.members) or any(member.server is not None for member in late):
            raise RolloutError(next(iter(late.values())))
        for member, why in late.items():
            self._lose(member, why)

    async def watched(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Look after all servers while something is done.

        Args:
            work: what is done.

        Returns:
            Its result.
        """
        working, watch = asyncio.ensure_future(work), asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({working, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()  # it ends only by what it raises; without it a request might wait for ever
            return working.result()
        finally:
            working.cancel()
            watch.cancel()
            await asyncio.gather(working, watch, return_exceptions=True)

    async def drop_failed(self, failures: Mapping[Any, RolloutError]) -> bool:
        """Take servers that did not take new weights out of service; they come back with whole ones, or not at all.

        Args:
            failures: client -> why.

        Returns:
            Whether a push to those that are left can do better: not if all refused, since a restart mends no refusal.
        """
        failed = [member for member in self.members if member.client in failures]
        if len(failed) == len(self.receiving) and all(
            isinstance(failures[member.client], RequestRefusedError) for member in failed
        ):
            return False
        for member in failed:
            self._lose(member, str(failures[member.client]))
        return bool(failed) and (bool(self.receiving) or self.may_recover)

    async def admit(self) -> None:
        """After a push that all receiving servers have taken: all of them serve."""
        for member in self.members:
            if member.state == "waiting":
                self._put_to_service(member)

    async def release_lost(self) -> None:
        """See that no memory is held by servers that this process has started and that receive nothing."""
        for member in self.members:
            await member.release_everything()

    @property
    def busy(self) -> list[RolloutClient]:
        """Clients of the servers that have requests under way, those among them that get no more."""
        return [member.client for member in self.members if member.under_way and member.state == "serving"]

    async def aclose(self) -> None:
        """Close the connections."""
        for member in self.members:
            await member.client.aclose()

    async def _unless_lost(self, member: Member, question: Coroutine[Any, Any, Result]) -> Result:
        """Ask a server something, and stop waiting when it is found lost."""
        asked = asyncio.ensure_future(question)
        lost = asyncio.ensure_future(member.lost.wait())
        try:
            await asyncio.wait({asked, lost}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
            raise RolloutError(member.why)
        finally:
            for task in (asked, lost):
                task.cancel()
            await asyncio.gather(asked, lost, return_exceptions=True)

    def _lose(self, member: Member, why: str) -> None:
        member.lose(why, max_restarts=self.max_restarts)
        self._note_change()
        if self.receiving or self.may_recover:  # otherwise the error that ends the run says it
            print(f"megacov: a rollout server is lost: {member.why}", flush=True)

    def _note_change(self) -> None:
        self.receiving[:] = [member.client for member in self.members if member.receives]
        self._changed.set()

    async def _watch(self) -> None:
        watched: set[Member] = set()
        try:
            async with asyncio.TaskGroup() as watchers:
                while True:
                    if self.address_file is not None:
                        self._follow(await asyncio.to_thread(self.address_file.read_again))
                    for member in set(self.members) - watched:
                        watchers.create_task(self._watch_member(member))
                    watched = set(self.members)
                    await asyncio.sleep(self.watch_s)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def _watch_member(self, member: Member) -> None:
        while member.state != "gone" and (member.under_way or not member.is_leaving):
            if member.state in ("serving", "waiting"):
                await self._examine(member)
            elif not member.is_leaving and (member.state != "out" or time.monotonic() >= member.retry_at):
                try:
                    await self._recover(member)
                except (RolloutError, WeightSyncError) as error:
                    self._lose(member, str(error))
            await asyncio.sleep(self.watch_s)
        if member.is_leaving:
            self.members.remove(member)
            self._retries_of_former += member.client.num_retries
            await member.client.aclose()

    def _follow(self, addresses: Sequence[str] | None) -> None:
        """Drain and add servers, so that there are those that should be."""
        if addresses is None:
            return
        known = {member.client.address: member for member in self.members if not member.is_leaving}
        for address in [address for address in known if address not in addresses]:
            known[address].is_leaving = True
            print(f"megacov: the rollout server {address} is no longer listed and gets no more requests.", flush=True)
        for address in [address for address in addresses if address not in known]:
            why = f"{address} was listed, but has not served yet"
            self.members.append(Member(self.make_client(address), state="out", why=why))
        self._note_change()

    async def _examine(self, member: Member) -> None:
        lost = member.lost
        try:
            await self._unless_lost(member, member.check_health(self.health_timeout_s, self.versions))
        except RolloutError as error:
            if not lost.is_set():  # found lost by a request meanwhile
                self._lose(member, str(error))

    async def _recover(self, member: Member) -> None:
        """Take the next steps back to service. May be cancelled between any two of them, and called again."""
        if member.server is not None and not await member.has_restarted(
            member.server,
            self.make_client,
            start_timeout_s=self.start_timeout_s,
            health_timeout_s=self.health_timeout_s,
        ):
            return
        await make_well(
            member.client,
            check=self.check,
            bring_up_to_date=self.bring_up_to_date,
            health_timeout_s=self.health_timeout_s,
        )
        if self.bring_up_to_date is not None:
            self._put_to_service(member)
        else:
            member.enter("waiting")
            self._note_change()

    def _put_to_service(self, member: Member) -> None:
        member.enter("serving")
        self._note_change()
        print(f"megacov: the rollout server {member.client.address} serves with the current weights.", flush=True)

"""Which servers of a fleet serve: watching, losing, restarting, updating, adding and draining them."""

from __future__ import annotations

import asyncio
import contextlib
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


HEALTH_TIMEOUT_S = 30.0
EMBEDDED_HEALTH_TIMEOUT_S = 300.0
"""The embedded server answers between forward passes, on cores that it may share; its process is watched besides."""


@dataclass(kw_only=True, eq=False)
class Membership:
    """The servers of a fleet. Use it within the clients' event loop.

    members: at least one server; all hold the same weights at the start. `wait_ready` makes them serve.
    make_client: makes a client for the address of a server that was added or restarted.
    bring_up_to_date: gives a server the current weights, checks them, and resumes it. None where that is impossible
        between two pushes.
    check: refuses an unusable server.
    address_file: list of the servers there should be, where that changes.
    max_restarts: restarts in a row of one server that this process started. [restarts]
    start_timeout_s: deadline for a restarted server to generate, and for any server to serve while a request waits. [s]
    watch_s: pause between two checks of all servers. [s]
    health_timeout_s: deadline of one health check; two failures in a row count as a loss. [s]
    versions: versions of all weights that servers may hold; the owner adds each before a push. A server that holds
        another version was restarted by somebody else. An empty set turns the check off.
    receiving: clients of the servers that get the next push; always the same list object.
    """

    members: list[Member]
    make_client: Callable[[str], RolloutClient]
    bring_up_to_date: BringUpToDate | None
    check: Check | None = None
    address_file: AddressFile | None = None
    max_restarts: int = 0
    start_timeout_s: float = 300.0
    watch_s: float = 2.0
    health_timeout_s: float = HEALTH_TIMEOUT_S
    versions: set[str] = field(default_factory=set, init=False)
    receiving: list[RolloutClient] = field(default_factory=list, init=False)
    _retries_of_former: int = field(default=0, init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        """Fill `receiving`."""
        self._note_change()

    @property
    def num_retries(self) -> int:
        """HTTP requests sent again so far, those of former members included."""
        return self._retries_of_former + sum(member.client.num_retries for member in self.members)

    @property
    def num_restarts(self) -> int:
        """Restarts of servers so far."""
        return sum(member.restarts for member in self.members)

    @property
    def may_recover(self) -> bool:
        """Whether some server that does not serve now may come back."""
        return any(member.may_come_back for member in self.members)

    @property
    def serving(self) -> list[RolloutClient]:
        """Clients of the servers that get requests now."""
        return [member.client for member in self.members if member.serves]

    @property
    def busy(self) -> list[RolloutClient]:
        """Clients of the servers that have requests under way, draining servers included."""
        return [member.client for member in self.members if member.under_way and member.state == "serving"]

    async def wait_ready(self) -> None:
        """Wait until all servers are healthy, `start_timeout_s` at most.

        Servers that this process did not start and that are late are lost, unless all are late.

        Raises:
            RolloutError: no server is healthy, one is unusable, or one that this process started is not healthy.
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
            self.lose(member, why)

    async def wait_for_change(self, timeout_s: float) -> None:
        """Wait until some server changes its state, `timeout_s` at most."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)

    async def watched(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await `work` while all servers are watched, and return its result."""
        working, watch = asyncio.ensure_future(work), asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({working, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()  # the watch ends only by raising; without it a request might wait for ever
            return working.result()
        finally:
            working.cancel()
            watch.cancel()
            await asyncio.gather(working, watch, return_exceptions=True)

    async def drop_failed(self, failures: Mapping[RolloutClient, RolloutError]) -> bool:
        """Take servers out of service that did not take new weights; they come back with a whole update, or never.

        Args:
            failures: client of a failed server -> reason.

        Returns:
            Whether another push to the remaining servers may succeed. Not if all refused: a restart cures no refusal.
        """
        failed = [member for member in self.members if member.client in failures]
        if len(failed) == len(self.receiving) and all(
            isinstance(failures[member.client], RequestRefusedError) for member in failed
        ):
            return False
        for member in failed:
            self.lose(member, str(failures[member.client]))
        return bool(failed) and (bool(self.receiving) or self.may_recover)

    async def admit(self) -> None:
        """Let all receiving servers serve, after a push that all of them have taken."""
        for member in self.members:
            if member.state == "waiting":
                self._put_to_service(member)

    async def release_lost(self) -> None:
        """End the processes of servers that this process started and that receive nothing, to free their memory."""
        for member in self.members:
            await member.release_everything()

    async def aclose(self) -> None:
        """Close the connections."""
        for member in self.members:
            await member.client.aclose()

    def lose(self, member: Member, why: str) -> None:
        """Take a server out of service, and print why."""
        member.lose(why, max_restarts=self.max_restarts)
        self._note_change()
        if self.receiving or self.may_recover:  # otherwise the error that ends the run carries the reason
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
                    self.lose(member, str(error))
            await asyncio.sleep(self.watch_s)
        if member.is_leaving:
            self.members.remove(member)
            self._retries_of_former += member.client.num_retries
            await member.client.aclose()

    def _follow(self, addresses: Sequence[str] | None) -> None:
        """Drain servers that are no longer listed, and add new ones. None changes nothing."""
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
            await member.unless_lost(member.check_health(self.health_timeout_s, self.versions))
        except RolloutError as error:
            if not lost.is_set():  # a request may have found the loss first
                self.lose(member, str(error))

    async def _recover(self, member: Member) -> None:
        """Take the next steps back to service. May be cancelled between any two steps, and called again."""
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

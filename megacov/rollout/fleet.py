"""Several rollout servers as one: requests go where there is room, and on to another server when one is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from megacov.errors import RolloutError, WeightSyncError
from megacov.rollout.client import RolloutClient
from megacov.rollout.connection import RequestRefusedError, UnreachableError
from megacov.rollout.server_process import ServerProcess
from megacov.rollout.wire import GenerateRequest
from megacov.types import Completion

Result = TypeVar("Result")

_MAX_ATTEMPTS = 4  # of one request, on whatever servers
_MAX_FAILURES = 3  # in a row, of a server that still answers
_FIRST_BACKOFF_S = 1.0
_LAST_BACKOFF_S = 60.0


class ServersWaitError(RolloutError):
    """No server has the current weights, but some that are well would take them now."""


@dataclass(eq=False)
class Member:
    """One server and what is known of it.

    serving: it holds the current weights and gets requests. out: nothing is asked of it until `retry_at`. starting: its
    process has been started anew. started: that generates, and wants the current weights. waiting: it is well, and can
    have them with the next push only. gone: it will not come back.
    """

    client: RolloutClient
    server: ServerProcess | None = None
    state: Literal["serving", "out", "starting", "started", "waiting", "gone"] = "serving"
    under_way: int = 0
    failures: int = 0
    setbacks: int = 0  # times lost since it last answered
    restarts: int = 0
    retry_at: float = 0.0
    why: str = ""
    lost: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(kw_only=True, eq=False)
class Fleet:
    """Servers of one model. Use it within one event loop, that of the clients.

    members: at least one; all hold the same weights at the beginning.
    make_client: for the address of a server that was started anew.
    bring_up_to_date: gives a server the current weights, checks that it has them, and lets it go on. None where that
        cannot be done between two pushes.
    max_restarts: of one server that this process has started. [restarts]
    start_timeout_s: until a restarted server must generate, and for which a request waits for any server. [s]
    watch_s: between two looks at all servers. [s]
    health_timeout_s: for one sign of health; two missing in a row are too many. [s]
    receiving: clients of the servers that a push of new weights goes to; the same list always.
    num_failovers: requests that went on to another server. [requests]
    num_restarts: servers that were started anew. [restarts]
    """

    members: Sequence[Member]
    make_client: Callable[[str], RolloutClient]
    bring_up_to_date: Callable[[RolloutClient], Awaitable[None]] | None
    max_restarts: int = 0
    start_timeout_s: float = 300.0
    watch_s: float = 2.0
    health_timeout_s: float = 30.0
    receiving: list[RolloutClient] = field(default_factory=list, init=False)
    num_failovers: int = field(default=0, init=False)
    num_restarts: int = field(default=0, init=False)
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
    def may_recover(self) -> bool:
        """Whether some server that does not serve now may come back."""
        return any(member.state in ("out", "starting", "started") for member in self.members)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Sample, on another server if one fails. A request is answered once: only what failed is sent elsewhere.

        Args:
            request: what to sample.

        Returns:
            n completions, all of one server.

        Raises:
            DataError: if the prompt has a token outside the vocabulary.
            RolloutError: if a server refused the request, or no server answered it.
        """
        tried: set[Member] = set()
        for attempt in range(_MAX_ATTEMPTS):
            self.num_failovers += attempt > 0
            member = await self._choose(tried)
            member.under_way += 1
            try:
                completions = await self._ask(member, request)
            except RequestRefusedError:
                raise
            except RolloutError as error:
                tried.add(member)
                self._note_failure(member, error)
                last = error
            else:
                member.failures = member.setbacks = 0
                return completions
            finally:
                member.under_way -= 1
        raise RolloutError(f"A request failed on {_MAX_ATTEMPTS} attempts, the last one with: {last}")

    async def watched(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Look after all servers while something is done.

        Args:
            work: what is done.

        Returns:
            Its result.
        """
        watch = asyncio.ensure_future(self._watch())
        try:
            return await work
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    @property
    def serving(self) -> list[RolloutClient]:
        """Clients of the servers that get requests now."""
        return [member.client for member in self.members if member.state == "serving"]

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

    async def aclose(self) -> None:
        """Close the connections."""
        for member in self.members:
            await member.client.aclose()

    async def _choose(self, tried: set[Member]) -> Member:
        deadline = time.monotonic() + self.start_timeout_s
        while True:
            serving = [member for member in self.members if member.state == "serving"]
            if serving:
                return min(serving, key=lambda member: (member in tried, member.under_way))
            if any(member.state == "waiting" for member in self.members):
                raise ServersWaitError("The rollout servers that are left wait for the weights of the next push.")
            left_s = deadline - time.monotonic()
            if not self.may_recover or left_s <= 0.0:
                whys = "; ".join(member.why for member in self.members)
                raise RolloutError(f"No rollout server is left: {whys}")
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)

    async def _ask(self, member: Member, request: GenerateRequest) -> list[Completion]:
        """Ask one server, and stop waiting when it is found lost."""
        asked = asyncio.ensure_future(member.client.generate(request))
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

    def _note_failure(self, member: Member, error: RolloutError) -> None:
        member.failures += 1
        # It may answer the next request; one that does not answer at all is found out by the watch as well.
        if member.state == "serving" and (member.failures >= _MAX_FAILURES or isinstance(error, UnreachableError)):
            self._lose(member, str(error))

    def _lose(self, member: Member, why: str) -> None:
        backoff_s = min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0**member.setbacks)
        member.state, member.why, member.retry_at = "out", why, time.monotonic() + backoff_s
        member.setbacks += 1
        member.failures = 0
        member.lost.set()
        if member.server is not None and member.restarts >= self.max_restarts:
            member.state = "gone"
        self._note_change()
        if self.receiving or self.may_recover:  # otherwise the error that ends the run says it
            print(f"megacov: a rollout server is lost: {why}", flush=True)

    def _note_change(self) -> None:
        self.receiving[:] = [member.client for member in self.members if member.state in ("serving", "waiting")]
        self._changed.set()

    async def _watch(self) -> None:
        await asyncio.gather(*map(self._watch_member, self.members))

    async def _watch_member(self, member: Member) -> None:
        while member.state != "gone":
            if member.state in ("serving", "waiting"):
                await self._check_health(member)
            elif member.state != "out" or time.monotonic() >= member.retry_at:
                try:
                    await self._recover(member)
                except (RolloutError, WeightSyncError) as error:
                    self._lose(member, str(error))
            await asyncio.sleep(self.watch_s)

    async def _check_health(self, member: Member) -> None:
        try:
            if member.server is not None:
                member.server.check_alive()
            if not await member.client.is_healthy(self.health_timeout_s):
                # Once more: a server with much to do may be late.
                await member.client.wait_healthy(self.health_timeout_s)
        except RolloutError as error:
            if member.state in ("serving", "waiting"):  # and not found lost by a request meanwhile
                self._lose(member, str(error))

    async def _recover(self, member: Member) -> None:
        """Take the next steps back to service. May be cancelled between any two of them, and called again."""
        if member.server is not None and not await self._has_restarted(member, member.server):
            return
        await member.client.learn_capabilities()
        # First: a server that was lost in an update is paused, and gives no sign of health.
        if self.bring_up_to_date is not None:
            await self.bring_up_to_date(member.client)
        else:
            await member.client.abandon_weight_update()
            await member.client.resume()
        await member.client.wait_healthy(self.health_timeout_s)
        if self.bring_up_to_date is not None:
            self._put_to_service(member)
        else:
            member.state, member.lost = "waiting", asyncio.Event()
            self._note_change()

    def _put_to_service(self, member: Member) -> None:
        member.state, member.lost, member.failures = "serving", asyncio.Event(), 0
        self._note_change()
        print(f"megacov: the rollout server {member.client.address} is back with the current weights.", flush=True)

    async def _has_restarted(self, member: Member, server: ServerProcess) -> bool:
        if member.state == "out":
            await self._restart(member, server)
        server.check_alive()
        if member.state == "starting" and await member.client.is_healthy(self.health_timeout_s):
            server.settle()
            member.state = "started"
        if member.state == "starting" and time.monotonic() > member.retry_at:
            raise RolloutError(f"The {server.name} was not healthy within {self.start_timeout_s:g} s of its restart.")
        return member.state == "started"

    async def _restart(self, member: Member, server: ServerProcess) -> None:
        await asyncio.to_thread(server.stop)  # what may be left of it
        await member.client.aclose()
        # From here on without a pause in which this might be cancelled.
        server.start()
        member.restarts += 1
        self.num_restarts += 1
        self._retries_of_former += member.client.num_retries
        member.client = self.make_client(server.address)
        member.state, member.retry_at = "starting", time.monotonic() + self.start_timeout_s

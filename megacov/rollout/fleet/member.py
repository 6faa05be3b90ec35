"""One server of a fleet: its state, and how it is restarted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Set
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from megacov.errors import RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.fleet.server_process import ServerProcess

_FIRST_BACKOFF_S = 1.0
_LAST_BACKOFF_S = 60.0
# This much healthy service resets the restart count: a restart takes minutes, so one an hour costs little.
_STEADY_S = 3600.0
# Up to this many requests beyond twice the lightest load, a server that has the prefix cached is still preferred.
_MUCH_LOAD = 8

Result = TypeVar("Result")


class LostWeightsError(RolloutError):
    """The server holds weights that the trainer did not send."""


@dataclass(eq=False)
class Member:
    """One server and its state.

    state: serving: it holds the current weights and gets requests. out: nothing is asked of it until `retry_at`.
        starting: its process was restarted. started: the new process generates, but lacks the current weights.
        waiting: it is healthy, and gets the current weights with the next push. gone: it will not come back.
    is_leaving: it gets no more requests, and is forgotten once it has answered those under way.
    setbacks: losses since its last answer.
    restarts_in_a_row: restarts without a long service between them.
    why: reason of the last loss.
    lost: set when the server is lost; `enter` replaces it.
    """

    client: RolloutClient
    server: ServerProcess | None = None
    state: Literal["serving", "out", "starting", "started", "waiting", "gone"] = "serving"
    is_leaving: bool = False
    under_way: int = 0
    failures: int = 0
    setbacks: int = 0
    restarts: int = 0
    restarts_in_a_row: int = 0
    serves_since: float = field(default_factory=time.monotonic)
    retry_at: float = 0.0
    why: str = ""
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: asyncio.Task[None] | None = None

    @property
    def serves(self) -> bool:
        """Whether it gets requests now."""
        return self.state == "serving" and not self.is_leaving

    @property
    def receives(self) -> bool:
        """Whether it gets the next push of weights."""
        return self.state in ("serving", "waiting") and not self.is_leaving

    @property
    def may_come_back(self) -> bool:
        """Whether it does not serve now but may serve later."""
        return self.state in ("out", "starting", "started") and not self.is_leaving

    def lose(self, why: str, *, max_restarts: int) -> None:
        """Take it out of service for a while, longer with each loss in a row.

        Args:
            why: reason, in a sentence.
            max_restarts: restarts in a row after which a server that this process started is given up.
        """
        backoff_s = min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0**self.setbacks)
        was_in_service = self.state in ("serving", "waiting")
        self.state, self.why, self.retry_at = "out", why, time.monotonic() + backoff_s
        self.setbacks += 1
        if was_in_service and time.monotonic() - self.serves_since >= _STEADY_S:
            self.restarts_in_a_row = 0
        self.failures = 0
        self.lost.set()
        if self.server is None:
            return
        # Stop it at once: a server that hangs holds GPU memory that the trainer may need before the restart.
        self._begin_to_stop(self.server)
        if self.restarts_in_a_row >= max_restarts:
            self.state = "gone"
            self.why = f"{why} (given up after {max_restarts} restarts in a row: rollout.max_restarts)"

    def enter(self, state: Literal["serving", "waiting"]) -> None:
        """Bring it back: `serving` if it has the current weights, else `waiting`."""
        if self.state not in ("serving", "waiting"):
            self.serves_since = time.monotonic()
        self.state, self.lost, self.failures = state, asyncio.Event(), 0

    async def check_health(self, timeout_s: float, versions: Set[str]) -> None:
        """Check that the server generates, with weights that the trainer sent.

        Args:
            timeout_s: deadline of one health check; two failures in a row raise. [s]
            versions: weight versions it may hold; an empty set allows any.

        Raises:
            RolloutError: it does not generate, or holds other weights.
        """
        self._check_process()
        if not await self.client.is_healthy(timeout_s):
            self._check_process()
            # Try once more: a busy server may be late.
            await self.client.wait_healthy(timeout_s)
        if self.state == "serving":
            version = (await self.client.model_info(timeout_s)).get("weight_version")
            self.check_weights([] if version is None else [str(version)], versions)

    def check_weights(self, held: Iterable[str], versions: Set[str]) -> None:
        """Check that nobody else has restarted the server since the last push.

        Args:
            held: weight versions that the server reports.
            versions: weight versions it may hold; an empty set allows any.

        Raises:
            LostWeightsError: the server reports another version.
        """
        foreign = set(held) - versions if versions else set()
        if foreign:
            raise LostWeightsError(
                f"{self.client.address} has weights of version {min(foreign)}, which it was not given: something has "
                "restarted it"
            )

    async def unless_lost(self, question: Coroutine[Any, Any, Result]) -> Result:
        """Await the server's answer; raises RolloutError as soon as the server is lost."""
        asked = asyncio.ensure_future(question)
        lost = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait({asked, lost}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
            raise RolloutError(self.why)
        finally:
            for task in (asked, lost):
                task.cancel()
            await asyncio.gather(asked, lost, return_exceptions=True)

    async def has_restarted(
        self,
        server: ServerProcess,
        make_client: Callable[[str], RolloutClient],
        *,
        start_timeout_s: float,
        health_timeout_s: float,
    ) -> bool:
        """Take the next step of a restart. May be cancelled, and called again.

        Args:
            server: process of this member.
            make_client: makes a client for the new address.
            start_timeout_s: deadline from the start until the server must generate. [s]
            health_timeout_s: deadline of one health check. [s]

        Returns:
            Whether the new process generates, with the weights on disk that it started from.

        Raises:
            RolloutError: the process cannot be started, has ended, or did not generate in time.
        """
        if self.state == "out":
            await self._stopped(server)
            self._start(server, start_timeout_s)
        server.check_alive()
        if self.state == "starting" and server.look_for_address():
            self._talk_to(server.address, make_client)
            if await self.client.is_healthy(health_timeout_s):
                server.settle()
                self.state = "started"
        if self.state == "starting" and time.monotonic() > self.retry_at:
            raise RolloutError(f"The {server.name} was not healthy within {start_timeout_s:g} s of its restart.")
        return self.state == "started"

    def _check_process(self) -> None:
        if self.server is not None:
            self.server.check_alive()

    async def release_everything(self) -> None:
        """End all processes of a lost server. A server that is starting is started again later."""
        if self.server is None or self.state in ("serving", "waiting"):
            return
        if self.state in ("starting", "started"):
            self.state, self.retry_at = "out", time.monotonic()
            self.restarts_in_a_row -= 1  # this restart was not the server's fault
        await self._stopped(self.server)

    def _begin_to_stop(self, server: ServerProcess) -> None:
        # The thread survives the cancellation of its waiter; a second thread might stop the next process.
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(asyncio.to_thread(server.stop))

    async def _stopped(self, server: ServerProcess) -> None:
        self._begin_to_stop(server)
        assert self._stopping is not None
        await asyncio.shield(self._stopping)
        self._stopping = None
        await self.client.aclose()

    def _start(self, server: ServerProcess, start_timeout_s: float) -> None:
        self.restarts += 1
        self.restarts_in_a_row += 1
        try:
            server.start()
        except OSError as error:
            raise RolloutError(f"The {server.name} could not be started again: {error}.") from error
        self.state, self.retry_at = "starting", time.monotonic() + start_timeout_s

    def _talk_to(self, address: str, make_client: Callable[[str], RolloutClient]) -> None:
        if address != self.client.address:
            former, self.client = self.client, make_client(address)
            self.client.connection.num_retries = former.num_retries  # the count follows the server


def pick(members: Collection[Member], tried: Set[Member], home: str) -> Member:
    """Choose the server for a request.

    Args:
        members: serving members, at least one.
        tried: members that failed to answer the request; taken only if there is no other.
        home: address of the server that has the prefix cached; preferred unless it has a much higher load.

    Returns:
        One of `members`.
    """
    best = min(members, key=lambda member: (member in tried, member.under_way))
    at_home = (member for member in members if member.client.address == home and member not in tried)
    wanted = next(at_home, best)
    return wanted if wanted.under_way <= 2 * best.under_way + _MUCH_LOAD else best

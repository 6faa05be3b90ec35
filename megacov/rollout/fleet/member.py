"""One server of a fleet: what is known of it, and how it is started anew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Set
from dataclasses import dataclass, field
from typing import Literal

from megacov.errors import RolloutError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.fleet.server_process import ServerProcess

_FIRST_BACKOFF_S = 1.0
_LAST_BACKOFF_S = 60.0
# A server that serves so long between two losses costs little: a start takes minutes.
_STEADY_S = 3600.0
# Requests under way at a server that has a prefix cached, up to which it is no use to read the prefix elsewhere.
_MUCH_LOAD = 8


class LostWeightsError(RolloutError):
    """The server holds weights that it was not given."""


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
    is_leaving: bool = False  # gets no more requests, and is forgotten once it has answered those under way
    under_way: int = 0
    failures: int = 0
    setbacks: int = 0  # times lost since it last answered
    restarts: int = 0
    restarts_in_a_row: int = 0  # without a steady time of service between them
    serves_since: float = field(default_factory=time.monotonic)
    retry_at: float = 0.0
    why: str = ""
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: asyncio.Task[None] | None = None

    @property
    def serves(self) -> bool:
        """Whether it may be asked now."""
        return self.state == "serving" and not self.is_leaving

    @property
    def receives(self) -> bool:
        """Whether new weights are pushed to it."""
        return self.state in ("serving", "waiting") and not self.is_leaving

    @property
    def may_come_back(self) -> bool:
        """Whether it may serve later, if not now."""
        return self.state in ("out", "starting", "started") and not self.is_leaving

    def lose(self, why: str, *, max_restarts: int) -> None:
        """Ask nothing of it for a while, the longer the more often this happens in a row.

        Args:
            why: it is lost.
            max_restarts: of the server, if this process has started it.
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
        # Now: one that hangs keeps its GPU memory, which the trainer may need before the restart.
        self._begin_to_stop(self.server)
        if self.restarts_in_a_row >= max_restarts:
            self.state = "gone"
            self.why = f"{why} (given up after {max_restarts} restarts in a row: rollout.max_restarts)"

    def enter(self, state: Literal["serving", "waiting"]) -> None:
        """Have it back.

        Args:
            state: whether it has the current weights.
        """
        if self.state not in ("serving", "waiting"):
            self.serves_since = time.monotonic()
        self.state, self.lost, self.failures = state, asyncio.Event(), 0

    async def check_health(self, timeout_s: float, versions: Set[str]) -> None:
        """See whether the server generates, with weights that it was given.

        Args:
            timeout_s: for one sign of health; two missing in a row are too many. [s]
            versions: of these weights; any if empty.

        Raises:
            RolloutError: it does not.
        """
        self._check_process()
        if not await self.client.is_healthy(timeout_s):
            self._check_process()
            # Once more: a server with much to do may be late.
            await self.client.wait_healthy(timeout_s)
        if self.state == "serving":
            version = (await self.client.model_info(timeout_s)).get("weight_version")
            self.check_weights([] if version is None else [str(version)], versions)

    def check_weights(self, held: Iterable[str], versions: Set[str]) -> None:
        """See whether the server was started anew by somebody else since it was given weights.

        Args:
            held: versions that it says it has.
            versions: those it may have; any if empty.

        Raises:
            LostWeightsError: it was.
        """
        foreign = set(held) - versions if versions else set()
        if foreign:
            raise LostWeightsError(
                f"{self.client.address} has weights of version {min(foreign)}, which it was not given: something has "
                "started it anew"
            )

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
            server: of this member.
            make_client: for its new address.
            start_timeout_s: from its start until it must generate. [s]
            health_timeout_s: for a sign of health. [s]

        Returns:
            Whether it generates, with the weights it starts with.

        Raises:
            RolloutError: it cannot be started, has ended, or did not generate in time.
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
        """See that no process is left of a server that was lost. One that is just starting begins anew later."""
        if self.server is None or self.state in ("serving", "waiting"):
            return
        if self.state in ("starting", "started"):
            self.state, self.retry_at = "out", time.monotonic()
            self.restarts_in_a_row -= 1  # it was not its fault
        await self._stopped(self.server)

    def _begin_to_stop(self, server: ServerProcess) -> None:
        # The thread goes on when its waiter is cancelled; a second one could stop the server that comes after.
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
            self.client.num_retries = former.num_retries  # counted for the server, wherever it listens


def pick(members: Collection[Member], tried: Set[Member], home: str) -> Member:
    """Choose where a request goes.

    Args:
        members: that serve, at least one.
        tried: those that have failed to answer it; only if there is no other.
        home: address of the server that has its prefix cached, which is preferred unless it has much more to do.

    Returns:
        One of them.
    """
    best = min(members, key=lambda member: (member in tried, member.under_way))
    at_home = (member for member in members if member.client.address == home and member not in tried)
    wanted = next(at_home, best)
    return wanted if wanted.under_way <= 2 * best.under_way + _MUCH_LOAD else best

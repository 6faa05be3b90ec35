"""A pause of all servers that no server's watchdog ends."""

from __future__ import annotations

import time
from collections.abc import Sequence

from megacov.config.transports import PauseMode
from megacov.rollout import RolloutClient
from megacov.weight_sync.servers import on_every_server

# Of the watchdog's time: one call that is under way when the half has passed may still take as long.
_SHARE = 0.5


class ServerPause:
    """Pauses all servers for a push, again and again.

    SGLang's watchdog kills a server whose running requests make no step for `watchdog-timeout` seconds, and requests
    that are paused in place still run. So a pause in place becomes one by retract, which takes them off the GPU, once
    half of that time has passed, and begins as one if the last pause took that long.
    """

    def __init__(self, clients: Sequence[RolloutClient], *, mode: PauseMode) -> None:
        """Pause nothing yet.

        Args:
            clients: one client per server; each pause is of the clients in the list at that time.
            mode: what happens to running requests, if the pause is short.
        """
        self._clients, self._wanted = clients, mode
        self._mode = mode
        self._is_paused = False
        self._began, self._last_s = 0.0, 0.0

    @property
    def keeps_cache(self) -> bool:
        """Whether running requests continue on their old keys and values."""
        return self._mode == "in_place"

    def deadline_s(self, timeout_s: float | None) -> float | None:
        """Deadline of one call to a server during the pause: a server that is paused in place dies at its watchdog's.

        Args:
            timeout_s: deadline without a watchdog. [s]

        Returns:
            The shorter of the two. [s]
        """
        if not self.keeps_cache or (watchdog_s := self._watchdog_s()) is None:
            return timeout_s
        return watchdog_s if timeout_s is None else min(timeout_s, watchdog_s)

    async def begin(self, *, timeout_s: float | None = None) -> None:
        """Pause all servers; raises ServersFailedError.

        Args:
            timeout_s: deadline of the call, where the client's own is longer. [s]
        """
        self._mode, self._began = self._wanted, time.monotonic()
        if self._is_too_long(self._last_s):
            self._mode = "retract"
        self._is_paused = True
        await on_every_server(self._clients, lambda client: client.pause(self._mode), timeout_s=timeout_s)

    async def keep_short(self, *, timeout_s: float | None = None) -> None:
        """Turn a pause in place that gets long into one by retract; raises ServersFailedError. Call it between calls.

        Args:
            timeout_s: deadline of the call, where the client's own is longer. [s]
        """
        if self._is_too_long(time.monotonic() - self._began):
            self._mode = "retract"
            await on_every_server(self._clients, lambda client: client.pause("retract"), timeout_s=timeout_s)

    async def end(self, *, timeout_s: float | None = None) -> None:
        """Let all servers generate again; raises ServersFailedError.

        Args:
            timeout_s: deadline of the call, where the client's own is longer. [s]
        """
        await on_every_server(self._clients, lambda client: client.resume(), timeout_s=timeout_s)
        self._is_paused, self._last_s = False, time.monotonic() - self._began

    async def give_up(self, *, timeout_s: float | None = None) -> None:
        """Let paused servers stay so until a later push, however long that takes; raises ServersFailedError.

        If this pause was too long for one in place, the later push begins with one by retract.

        Args:
            timeout_s: deadline of the call, where the client's own is longer. [s]
        """
        if self._is_paused:
            self._last_s = time.monotonic() - self._began
        if self._is_paused and self.keeps_cache and self._watchdog_s() is not None:
            self._mode = "retract"
            await on_every_server(self._clients, lambda client: client.pause("retract"), timeout_s=timeout_s)

    def _is_too_long(self, pause_s: float) -> bool:
        watchdog_s = self._watchdog_s()
        return self.keeps_cache and watchdog_s is not None and pause_s >= _SHARE * watchdog_s

    def _watchdog_s(self) -> float | None:
        found = [client.capabilities.watchdog_s for client in self._clients]
        return min((each for each in found if each is not None), default=None)

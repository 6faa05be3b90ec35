"""Rollout servers on the trainer's own GPUs, which hold memory only while they are needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

from megacov.rollout import RequestRefusedError, RolloutClient
from megacov.weight_sync import on_every_server

WEIGHTS = "weights"
_EVERYTHING_ELSE = ("kv_cache", "cuda_graph")

_IDLE_TIMEOUT_S = 30.0
_POLL_S = 0.1


class LentMemory:
    """GPU memory that the servers have freed for the trainer. Use it within the clients' event loop.

    In a step, servers first allocate memory for their weights, which a push then fills, and next everything else. They
    sample, and then free all of it. So servers never hold keys and values while weights are on their way.
    """

    def __init__(self, clients: Sequence[RolloutClient]) -> None:
        """Assume that all servers hold everything.

        Args:
            clients: one client per server; each call goes to the clients in the list at that time.
        """
        self._clients = clients
        self._given: dict[RolloutClient, set[str]] = {}

    async def give(self) -> None:
        """Have all servers free everything. They stay paused until the next push resumes them.

        Raises:
            ServersFailedError: a server did not free its memory.
        """
        await on_every_server(self._clients, self._give)

    async def take_weights(self) -> None:
        """Let servers allocate memory for their weights, whose content is undefined until the next push.

        Raises:
            ServersFailedError: a server could not allocate it.
        """
        await on_every_server(self._clients, lambda client: self._take(client, (WEIGHTS,)))

    async def take_everything_else(self) -> None:
        """Let servers allocate the rest of what they need to generate.

        Raises:
            ServersFailedError: a server could not allocate it.
        """
        await on_every_server(self._clients, lambda client: self._take(client, _EVERYTHING_ELSE))

    def forget(self, clients: Iterable[RolloutClient]) -> None:
        """Forget what lost servers had freed: a restarted server holds everything."""
        for client in clients:
            self._given.pop(client, None)

    async def _give(self, client: RolloutClient) -> None:
        if client not in self._given:
            # SGLang's scheduler exits when it is asked to free memory with work pending, such as a prefetched batch or
            # a health check. Requests that arrive from now on wait for the end of the pause.
            await client.pause("abort")
            await _wait_until_idle(client)
            await client.release_memory()
            self._given[client] = {WEIGHTS, *_EVERYTHING_ELSE}

    async def _take(self, client: RolloutClient, tags: Sequence[str]) -> None:
        # A restarted server has freed nothing.
        given = self._given.get(client, set())
        wanted = [tag for tag in tags if tag in given]
        if wanted:
            await client.resume_memory(wanted)
            given.difference_update(wanted)
        if not given:
            self._given.pop(client, None)


async def _wait_until_idle(client: RolloutClient) -> None:
    """Wait until the server drops its cache, which it refuses while it has work."""
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    while True:
        try:
            return await client.flush_cache()
        except RequestRefusedError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_POLL_S)

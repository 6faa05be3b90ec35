"""Rollout servers on the trainer's own GPUs: they hold memory only while they are needed."""

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
    """What the servers have given back for the trainer to compute in. Use it within the clients' event loop.

    A step: weights are taken back and replaced, everything else is taken back, samples are drawn, all is given back. So
    servers never hold keys and values beside the weights that are on their way.
    """

    def __init__(self, clients: Sequence[RolloutClient]) -> None:
        """All servers hold everything.

        Args:
            clients: one per server; those that are in it when something is asked for.
        """
        self._clients = clients
        self._given: dict[RolloutClient, set[str]] = {}

    async def give(self) -> None:
        """Have all servers give back everything. They are paused from then on, until a push has them go on.

        Raises:
            ServersFailedError: one did not.
        """
        await on_every_server(self._clients, self._give)

    async def take_weights(self) -> None:
        """Let servers have memory for their weights, whose content is undefined until the next push.

        Raises:
            ServersFailedError: one could not have it.
        """
        await on_every_server(self._clients, lambda client: self._take(client, (WEIGHTS,)))

    async def take_everything_else(self) -> None:
        """Let servers have memory for what they generate with.

        Raises:
            ServersFailedError: one could not have it.
        """
        await on_every_server(self._clients, lambda client: self._take(client, _EVERYTHING_ELSE))

    def forget(self, clients: Iterable[RolloutClient]) -> None:
        """Expect nothing of servers that are lost: one that is started anew has given nothing.

        Args:
            clients: of the servers.
        """
        for client in clients:
            self._given.pop(client, None)

    async def _give(self, client: RolloutClient) -> None:
        if client not in self._given:
            # SGLang's scheduler ends itself where it is asked for memory with anything under way: a batch ahead, or the
            # token by which it shows its health. Requests that come now wait for the end of the pause.
            await client.pause("abort")
            await _wait_until_idle(client)
            await client.release_memory()
            self._given[client] = {WEIGHTS, *_EVERYTHING_ELSE}

    async def _take(self, client: RolloutClient, tags: Sequence[str]) -> None:
        # A server that was started anew has given nothing.
        given = self._given.get(client, set())
        wanted = [tag for tag in tags if tag in given]
        if wanted:
            await client.resume_memory(wanted)
            given.difference_update(wanted)
        if not given:
            self._given.pop(client, None)


async def _wait_until_idle(client: RolloutClient) -> None:
    """A server that is not idle refuses to drop its cache."""
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    while True:
        try:
            return await client.flush_cache()
        except RequestRefusedError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_POLL_S)

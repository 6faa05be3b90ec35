"""Acting on all rollout servers at once, and checking that they hold the same weights."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from megacov.config.transports import Verification
from megacov.errors import RolloutError
from megacov.rollout import RolloutClient
from megacov.weight_sync.base import ServersFailedError

Result = TypeVar("Result")

Checksums = dict[int, str]
"""Number of ranks of a server -> text of the checksums of its weights."""


async def on_every_server(
    clients: Sequence[RolloutClient],
    action: Callable[[RolloutClient], Awaitable[Result]],
    *,
    timeout_s: float | None = None,
) -> dict[RolloutClient, Result]:
    """Act on all servers at once, and wait for all of them even if one fails.

    Args:
        clients: one client per server.
        action: call on one server; exceptions other than RolloutError pass through.
        timeout_s: deadline of the action, where the client's own deadlines are longer. [s]

    Returns:
        client -> result of the action.

    Raises:
        ServersFailedError: the action failed on some servers.
    """

    async def act(client: RolloutClient) -> Result:
        try:
            async with asyncio.timeout(timeout_s):
                return await action(client)
        except TimeoutError as error:
            raise RolloutError(f"{client.address} did not answer within {timeout_s:g} s.") from error

    outcomes = await asyncio.gather(*map(act, clients), return_exceptions=True)
    failures: dict[RolloutClient, RolloutError] = {}
    results: dict[RolloutClient, Result] = {}
    for client, outcome in zip(clients, outcomes, strict=True):
        if isinstance(outcome, RolloutError):
            failures[client] = outcome
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            results[client] = outcome
    if failures:
        raise ServersFailedError(failures)
    return results


async def leave_on_every_server(clients: Sequence[RolloutClient], group_name: str, *, timeout_s: float) -> None:
    """Have the servers that answer leave a process group.

    Args:
        clients: one client per server.
        group_name: the group; being in no such group is no failure.
        timeout_s: deadline, where the client's own is longer. [s]
    """
    with suppress(ServersFailedError):
        await on_every_server(clients, lambda client: client.weights.destroy_group(group_name), timeout_s=timeout_s)


async def verify_servers(
    clients: Sequence[RolloutClient],
    version: str,
    how: Verification,
    *,
    timeout_s: float | None = None,
    like: Checksums | None = None,
) -> Checksums:
    """Check what servers hold after an update, before they resume.

    Args:
        clients: one client per server.
        version: version that each server must report.
        how: none; version asks each server for it; checksums also compares the weights of servers with equally many
            ranks, which finds a server that has taken only part of the update.
        timeout_s: deadline of each call, where the client's own deadlines are longer. [s]
        like: checksums of servers that hold the same weights, whom the others must equal.

    Returns:
        The checksums by number of ranks, where they were compared.

    Raises:
        ServersFailedError: a server holds another version, or other weights than most servers do.
    """
    if how == "none":
        return {}
    await on_every_server(clients, lambda client: _check_version(client, version), timeout_s=timeout_s)
    if how != "checksums":
        return {}
    sums = await on_every_server(clients, lambda client: client.weights.checksums(), timeout_s=timeout_s)
    contents = {client: (len(ranks), str([sorted(rank.items()) for rank in ranks])) for client, ranks in sums.items()}
    known = like or {}
    strangers = [client for client, (size, text) in contents.items() if known.get(size, text) != text]
    strangers += _unlike_the_others(contents)
    if strangers:
        raise ServersFailedError(
            {client: RolloutError(f"{client.address} holds other weights than other servers.") for client in strangers}
        )
    return dict(contents.values())


async def _check_version(client: RolloutClient, version: str) -> None:
    found = (await client.model_info()).get("weight_version")
    if found != version:
        raise RolloutError(f"{client.address} reports weight version {found} after an update to {version}.")


def _unlike_the_others(contents: dict[RolloutClient, tuple[int, str]]) -> list[RolloutClient]:
    """Servers outside the largest set with equal weights, among servers with equally many ranks; all in a tie."""
    strangers: list[RolloutClient] = []
    for num_ranks in {length for length, _ in contents.values()}:
        counts = Counter(content for content in contents.values() if content[0] == num_ranks).most_common(2)
        is_tie = len(counts) == 2 and counts[0][1] == counts[1][1]
        strangers += [
            client
            for client, content in contents.items()
            if content[0] == num_ranks and (is_tie or content != counts[0][0])
        ]
    return strangers

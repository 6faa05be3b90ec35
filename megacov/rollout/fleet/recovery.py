"""How a server comes to serve: at the start of a run, and after it was lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from megacov.errors import RolloutError
from megacov.rollout.client.capabilities import UnusableServerError
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.connection import RefusedError

Check = Callable[[RolloutClient], None]
BringUpToDate = Callable[[RolloutClient], Awaitable[None]]

_POLL_S = 0.2


async def make_well(
    client: RolloutClient, *, check: Check | None, bring_up_to_date: BringUpToDate | None, health_timeout_s: float
) -> None:
    """Make a server generate that may have been left paused, or in the middle of an update.

    Args:
        client: client of a server that listens.
        check: refuses an unusable server.
        bring_up_to_date: gives it the current weights, if there are any, and resumes it; None leaves that to a push.
        health_timeout_s: deadline of the health check. [s]

    Raises:
        RolloutError: the server does not generate, or is unusable.
    """
    await client.learn_capabilities()
    if check is not None:
        check(client)
    # This comes before the health check, which a paused server fails.
    if bring_up_to_date is not None:
        await bring_up_to_date(client)
    else:
        await client.weights.abandon()
        await client.resume()
    await client.wait_healthy(health_timeout_s)


async def wait_until_well(
    client: RolloutClient, *, check: Check | None, bring_up_to_date: BringUpToDate | None, timeout_s: float
) -> str | None:
    """Repeat `make_well` until it succeeds, with a server that may not listen yet.

    Args:
        client: client of the server.
        check: see `make_well`.
        bring_up_to_date: see `make_well`.
        timeout_s: deadline of all attempts together. [s]

    Returns:
        None, or why the server was not healthy in time.

    Raises:
        UnusableServerError: the server is unusable.
        RefusedError: the server refused a call that every attempt needs, for example because of a wrong key.
    """
    deadline, why = time.monotonic() + timeout_s, "it took too long."
    while (left_s := deadline - time.monotonic()) > 0.0:
        try:
            async with asyncio.timeout(left_s):
                await make_well(client, check=check, bring_up_to_date=bring_up_to_date, health_timeout_s=left_s)
                return None
        except (UnusableServerError, RefusedError):
            raise
        except RolloutError as error:
            why = str(error)
        except TimeoutError:
            break
        await asyncio.sleep(_POLL_S)
    return f"{client.address} was not ready within {timeout_s:g} s: {why}"

"""How a server comes to serve: at the beginning of a run, and after it was lost."""

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
    """Have a server generate that was perhaps left paused, or in the middle of an update.

    Args:
        client: of the server, which listens.
        check: refuses one that cannot be used.
        bring_up_to_date: gives it the current weights, if there are any, and lets it go on; None leaves that to a push.
        health_timeout_s: for a sign of health. [s]

    Raises:
        RolloutError: it does not generate, or cannot be used.
    """
    await client.learn_capabilities()
    if check is not None:
        check(client)
    # First: a server that is paused gives no sign of health.
    if bring_up_to_date is not None:
        await bring_up_to_date(client)
    else:
        await client.abandon_weight_update()
        await client.resume()
    await client.wait_healthy(health_timeout_s)


async def wait_until_well(
    client: RolloutClient, *, check: Check | None, bring_up_to_date: BringUpToDate | None, timeout_s: float
) -> str | None:
    """Try `make_well` again and again, with a server that may not listen yet.

    Args:
        client: of the server.
        check: as there.
        bring_up_to_date: as there.
        timeout_s: deadline. [s]

    Returns:
        None, or why the server was not well in time.

    Raises:
        UnusableServerError: it cannot be used.
        RefusedError: it refused what the next attempt would ask for again, as with a wrong key.
    """
    deadline, said = time.monotonic() + timeout_s, "it took too long."
    while (left_s := deadline - time.monotonic()) > 0.0:
        try:
            async with asyncio.timeout(left_s):
                await make_well(client, check=check, bring_up_to_date=bring_up_to_date, health_timeout_s=left_s)
                return None
        except (UnusableServerError, RefusedError):
            raise
        except RolloutError as error:
            said = str(error)
        except TimeoutError:
            break
        await asyncio.sleep(_POLL_S)
    return f"{client.address} was not ready within {timeout_s:g} s: {said}"

"""Several coroutines at once, of which the first failure cancels the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TypeVar

Result = TypeVar("Result")


async def gather_all(coroutines: Iterable[Coroutine[None, None, Result]]) -> list[Result]:
    """Do several things at once; the first failure cancels the others and is raised by itself.

    Args:
        coroutines: what is done.

    Returns:
        All results in order.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return [task.result() for task in running]
